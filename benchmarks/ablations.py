"""The paper's ablations, small: does each part of DOLG earn its place on real photos?

    python benchmarks/ablations.py --photos=$DOLG_REAL_PHOTOS --output=runs/ablations

The folder holds photos and a labels.csv with the columns path, landmark and split. The backbone is
an EfficientNet-Lite with real ImageNet weights; its maps are computed once, each photo also
mirrored, and everything above them is trained on them with ArcFace, for each variant with the same
photos, steps and seeds. Scores are mAP and recall at 1 of the queries in the whole index: of all
landmarks after training on all of them ("seen"), and of the third of the landmarks that was left
out of training ("fold0" to "fold2"). The learning rate of a split is chosen with the full model on
landmarks of its training part that are left out of that alone; what is left out of the split is
scored once, at the end. Each finished run is kept in OUTPUT, so that the same command goes on after
an interruption; `--full` adds variants and seeds.
"""

import argparse
import dataclasses
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ablation_table
import keras
import numpy as np
import tensorflow as tf

from dolg_tf import files, progress
from dolg_tf.data import images
from dolg_tf.data.own_photos import read_labels
from dolg_tf.evaluation.metrics import average_precision
from dolg_tf.modeling import dolg
from dolg_tf.modeling.heads import ArcFace
from dolg_tf.recipe import DolgConfig
from dolg_tf.weights import imagenet

SIDE = 288  # pixels, photos stretched to a square
BATCH = 64
FOLDS = 3
RATES = (3e-4, 1e-3, 3e-3)
SCALE, MARGIN = 30.0, 0.15  # of ArcFace, as in the paper
FULL = "full model"
VARIANTS = {
    FULL: {},
    "no local branch": {"fusion": "global_only"},
    "no multi-atrous": {"multi_atrous": False},
    "no self-attention": {"self_attention": False},
    "concatenation": {"fusion": "concat"},
    "Hadamard": {"fusion": "hadamard"},
    "local features of f4": {"local_source": "p5"},
    "average for GeM": {"global_pooling": "average"},
}
MORE = {
    "local features of f3 and f4": {"local_source": "p4+p5"},
    "local features of stride 8": {"local_source": "p3"},
    "fused by GeM": {"fused_pooling": "gem"},
    "fused by learned GeM": {"fused_pooling": "learned"},
    "learned GeM": {"global_pooling": "learned"},
    "dilations 1, 2, 3": {"dilations": (1, 2, 3)},
    "descriptor of 128": {"descriptor_size": 128},
}


# --- photos -> maps of the backbone -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps of photos, and which landmark each shows.

    Attributes:
      arrays: {"p3"|"p4"|"p5": float16 (N, M, h, w, C)}, M 2 where each photo is mirrored too.
      landmarks: int (N,).
    """

    arrays: dict[str, np.ndarray]
    landmarks: np.ndarray

    def batch(self, rows, mirrored=None) -> list[np.ndarray]:
        mirrored = np.zeros(len(rows), np.int64) if mirrored is None else mirrored
        return [array[rows, mirrored].astype(np.float32) for array in self.arrays.values()]

    def only(self, keep: np.ndarray) -> "Maps":
        return Maps(
            {name: array[keep] for name, array in self.arrays.items()}, self.landmarks[keep]
        )


def base_config(backbone: str, width: int) -> DolgConfig:
    """Returns the full model; `width` is of the local and the global feature."""
    config = DolgConfig(backbone=backbone, local_channels=width)
    return dataclasses.replace(config, preprocessing=imagenet.preprocessing(backbone, config))


def compute_maps(folder: pathlib.Path, cache: pathlib.Path, config: DolgConfig) -> dict[str, Maps]:
    """Returns the maps of each split, computed unless they lie in the cache."""
    labels = read_labels(folder / "labels.csv")
    names = sorted({landmark for rows in labels.values() for _, landmark in rows})
    found, model = {}, None
    for split, rows in labels.items():
        landmarks = np.array([names.index(landmark) for _, landmark in rows])
        place = cache / f"{config.backbone}-{SIDE}-{split}"
        if not place.exists():
            model = model or _backbone(config)
            paths = [folder / path for path, _ in rows]
            with files.atomic_path(place) as temporary:
                temporary.mkdir()
                for level, array in _describe(model, paths, split).items():
                    np.save(temporary / f"{level}.npy", array)
        arrays = {level: np.load(place / f"{level}.npy", mmap_mode="r") for level in dolg.MAPS}
        found[split] = Maps(arrays, landmarks)
    return found


def _backbone(config: DolgConfig):
    network = dolg.build_dolg(config, seed=0)
    imagenet.load_backbone(network, config.backbone)
    normalize, backbone = network.get_layer("normalization"), network.get_layer("backbone")
    return tf.function(lambda x: backbone(normalize(x), training=False), reduce_retracing=True)


def _describe(model, paths: list[pathlib.Path], split: str) -> dict[str, np.ndarray]:
    def load(path):
        photo = images.resize_levels(images.decode(tf.io.read_file(path)), SIDE, SIDE)
        return tf.stack([photo, photo[:, ::-1]]) if split == "train" else photo[None]

    photos = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    photos = photos.map(load, num_parallel_calls=2).prefetch(8)
    rows = []
    for photo in progress.track(photos, len(paths), f"maps of {split}"):
        rows.append([np.asarray(level, np.float16) for level in model(photo)])
    return dict(zip(dolg.MAPS, map(np.stack, zip(*rows, strict=True)), strict=True))


# --- maps -> descriptors ----------------------------------------------------------------------


def build_top(config: DolgConfig, seed: int) -> tuple[keras.Model, list[str]]:
    """Returns what is above the backbone's maps, and which maps it takes."""
    network = dolg.build_dolg(config, seed=seed)
    names = [name for name in dolg.MAPS if any(layer.name == name for layer in network.layers)]
    inputs = [network.get_layer(name).output for name in names]
    return keras.Model(inputs, network.output), names


def train(config: DolgConfig, maps: Maps, rate: float, steps: int, seed: int):
    """Trains what is above the maps; returns a function of maps (N photos) to unit descriptors."""
    top, names = build_top(config, seed)
    classes, labels = np.unique(maps.landmarks, return_inverse=True)
    head = ArcFace(len(classes), MARGIN, SCALE)
    head.build((None, config.descriptor_size))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, 0.0, warmup_target=rate, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)
    variables = top.trainable_variables + head.trainable_variables
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            logits = head.logits(head(top(inputs, training=True)), targets, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return loss

    wanted = Maps({name: maps.arrays[name] for name in names}, maps.landmarks)
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(len(labels)) for _ in range(steps * BATCH // len(labels) + 1)]
    )
    for number in range(steps):
        rows = order[number * BATCH : (number + 1) * BATCH]
        loss = step(wanted.batch(rows, rng.integers(2, size=len(rows))), labels[rows])
    if not np.isfinite(float(loss)):
        raise FloatingPointError(f"the loss is {float(loss)} after {steps} steps at rate {rate}")

    call = tf.function(lambda inputs: top(inputs, training=False), reduce_retracing=True)

    def describe(maps: Maps) -> np.ndarray:
        some = Maps({name: maps.arrays[name] for name in names}, maps.landmarks)
        starts = range(0, len(maps.landmarks), BATCH)
        parts = [
            call(some.batch(np.arange(s, min(s + BATCH, len(maps.landmarks))))) for s in starts
        ]
        rows = np.concatenate([np.asarray(part) for part in parts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return describe


def score(describe, queries: Maps, index: Maps) -> dict[str, list[float]]:
    """Returns average precision and hit at 1 of each query in the whole index, as fractions."""
    order = np.argsort(-(describe(queries) @ describe(index).T), axis=1, kind="stable")
    hits = index.landmarks[order] == queries.landmarks[:, None]
    return {
        "AP": [average_precision(np.flatnonzero(row)) for row in hits],
        "hit": [float(row[0]) for row in hits],
    }


# --- splits -----------------------------------------------------------------------------------


def fold_of(landmarks: np.ndarray) -> np.ndarray:
    """Returns the fold in which each landmark is left out: their order by name, modulo `FOLDS`."""
    return landmarks % FOLDS


def split_maps(maps: dict[str, Maps], split: str) -> tuple[Maps, Maps]:
    """Returns the photos that a split trains on, and the queries it is scored by."""
    train_maps, queries = maps["train"], maps["query"]
    if split == "seen":
        return train_maps, queries
    fold = int(split.removeprefix("fold"))
    return (
        train_maps.only(fold_of(train_maps.landmarks) != fold),
        queries.only(fold_of(queries.landmarks) == fold),
    )


def choose_rate(config: DolgConfig, train_maps: Maps, steps: int) -> dict:
    """Chooses the learning rate on a third of the training landmarks, left out of the others.

    Every fifth of their training photos is a query, the others are the index.
    """
    names = np.unique(train_maps.landmarks)
    held = np.isin(train_maps.landmarks, names[::3])
    inner = train_maps.only(held)
    query = np.arange(len(inner.landmarks)) % 5 == 0
    found = {}
    for rate in RATES:
        describe = train(config, train_maps.only(~held), rate, steps, seed=100)
        found[str(rate)] = float(
            np.mean(score(describe, inner.only(query), inner.only(~query))["AP"])
        )
    return {"rate": float(max(found, key=found.get)), "inner_mAP": found}


# --- all of it --------------------------------------------------------------------------------


def run(arguments) -> dict:
    """Computes what is not there yet and returns all results, by variant, seed and split."""
    output = pathlib.Path(arguments.output)
    config = base_config(arguments.backbone, arguments.width)
    maps = compute_maps(pathlib.Path(arguments.photos), output / "maps", config)
    variants = VARIANTS | MORE if arguments.full else VARIANTS
    seeds = range(arguments.seeds or (5 if arguments.full else 3))
    splits = ["seen", *(f"fold{fold}" for fold in range(FOLDS))]
    budget = {"steps": arguments.steps, "batch": BATCH, "side": SIDE, "width": arguments.width}
    budget |= {"backbone": arguments.backbone}
    state_file = output / "runs.json"
    state = files.read_json(state_file) if state_file.exists() else {"budget": budget, "rates": {}}
    if state["budget"] != budget:
        raise SystemExit(f"{state_file} is of {state['budget']}; choose another --output")
    state.setdefault("runs", {})
    parts = {split: split_maps(maps, split) for split in splits}
    for split in splits:
        if split not in state["rates"]:
            state["rates"][split] = choose_rate(config, parts[split][0], arguments.steps)
            files.write_json(state_file, state)
            print(split, state["rates"][split], flush=True)
    todo = [(v, seed, split) for seed in seeds for v in variants for split in splits]
    start = time.monotonic()
    for name, seed, split in progress.track(todo, len(todo), "ablations", "runs"):
        done = state["runs"].setdefault(name, {}).setdefault(str(seed), {})
        if split in done:
            continue
        if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
            print("the time is over; the same command goes on", flush=True)
            break
        changed = dataclasses.replace(config, **variants[name])
        train_maps, queries = parts[split]
        rate = state["rates"][split]["rate"]
        describe = train(changed, train_maps, rate, arguments.steps, seed)
        done[split] = score(describe, queries, maps["index"])
        files.write_json(state_file, state)
        keras.backend.clear_session()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--photos", required=True, help="folder of photos with a labels.csv")
    parser.add_argument("--output", required=True, help="folder of results")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--width", type=int, default=160, help="of local and global feature")
    parser.add_argument("--steps", type=int, default=200, help="of training, 64 photos each")
    parser.add_argument("--seeds", type=int, default=0, help="0: 3, with --full 5")
    parser.add_argument("--full", action="store_true", help="more variants and seeds")
    parser.add_argument("--minutes", type=float, default=0, help="stop after; 0: when done")
    arguments = parser.parse_args()
    state = run(arguments)
    ablation_table.write(pathlib.Path(arguments.output), state, FULL)


if __name__ == "__main__":
    main()
