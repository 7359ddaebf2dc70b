"""The paper's ablations at a small scale: does each part of DOLG earn its place on real photos?

    python benchmarks/quality/ablations.py --photos=$DOLG_REAL_PHOTOS --output=runs/ablations

The folder holds photos and a labels.csv with the columns path, landmark and split. The backbone is
an EfficientNet-Lite with real ImageNet weights. It is cut at its top convolution, whose maps are
non-negative like a ResNet's. Its maps are computed once, of each photo and of its mirror image. The
layers above are trained on them with ArcFace. All variants share photos, steps, seeds and the
learning rates to choose from. Dilations are the paper's in proportion to the smaller map.

Scores are mAP and recall at 1 over the whole index. After training on all landmarks, the queries of
all landmarks count ("seen"). After training without a third of the landmarks, the queries of that
third count ("fold0" to "fold2"). The learning rate of a variant and split is chosen on landmarks of
the training part, held out for this alone; the left-out third is scored once, at the end. Landmarks
that show one another must stay in one fold: `--together`. Finished runs are kept in OUTPUT, so the
same command continues after an interruption. `--full` adds variants, rates and seeds. With
`--backbone_lr` the backbone is trained too, on photos instead of maps, except for its batch norms;
a run then takes fifteen times as long.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ablation_table
import keras
import numpy as np
import tensorflow as tf
from ablation_photos import SIDE, Maps, Splits, compute_maps, landmark_names
from ablation_table import SPLITS
from photo_scores import score_queries

from dolg_tf.data.own_photos import read_labels
from dolg_tf.modeling import dolg
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.heads import ArcFace
from dolg_tf.modeling.layers import GeM, l2_normalize
from dolg_tf.stage import config as configs
from dolg_tf.stage import files, progress
from dolg_tf.stage.processes import end_with_parent
from dolg_tf.weights import imagenet

BATCH = 32
RATES, MORE_RATES = (3e-4, 1e-3), (1e-4, 3e-4, 1e-3, 3e-3)
SCALE, MARGIN = 30.0, 0.15  # of ArcFace, as in the paper
DILATIONS = (3, 7, 10)  # for 18 x 18 cells, like 6, 12, 18 for 32 x 32
VARIANTS = dict(ablation_table.VARIANTS)
VARIANTS["local features of f4"] = {**VARIANTS["local features of f4"], "dilations": (2, 3, 5)}
# Trained exponents would need a learning rate of their own: 200 steps do not move them.
MORE = {
    "local features of f3 and f4": {"local_source": "p4+p5"},
    "local features of stride 8": {"local_source": "p3", "dilations": (6, 14, 20)},
    "fused by GeM": {"fused_pooling": "gem"},
    "dilations 1, 2, 3": {"dilations": (1, 2, 3)},
    "dilations 6, 12, 18": {"dilations": (6, 12, 18)},
    "descriptor of 128": {"descriptor_size": 128},
}


def base_config(backbone: str, width: int) -> DolgConfig:
    """Returns the full model, whose local and global features have `width` channels."""
    config = DolgConfig(
        backbone=backbone, stride32="top_conv", local_channels=width, dilations=DILATIONS
    )
    return dataclasses.replace(config, preprocessing=imagenet.preprocessing(backbone, config))


# --- maps -> descriptors ----------------------------------------------------------------------


def build_top(
    config: DolgConfig, maps: Maps, seed: int, local: bool = False
) -> tuple[keras.Model, list[str]]:
    """Returns the layers above the backbone, or the whole network for photos; and its input names.

    With `local`, the model gives descriptors and local features.

    The global feature starts thirty times as long as the pooled local part. The input of the last
    layer is therefore multiplied by constants that give each of its halves length 1 on average over
    a first batch. The network stays the same, since its last layer could hold the constants, but
    both halves count and learn from the first step on.
    """
    network = dolg.build_dolg(config, seed=seed)
    layers = {layer.name: layer for layer in network.layers}
    if "photo" in maps.arrays:
        imagenet.load_backbone(network, config.backbone)
        for layer in layers["backbone"]._flatten_layers(include_self=False, recursive=True):
            # Photos of 33 landmarks say less about the statistics than ImageNet does.
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        names, inputs = ["photo"], [network.input]
    else:
        names = [name for name in dolg.MAPS if name in layers]
        inputs = [layers[name].output for name in names]
    fused = layers["fused" if "fused" in layers else "global"].output
    taken = Maps({name: maps.arrays[name] for name in names}, maps.landmarks)
    some = taken.batch(np.linspace(0, len(maps.landmarks) - 1, BATCH).astype(int))
    rows = np.asarray(keras.Model(inputs, fused)(some, training=True))
    width = layers["global"].output.shape[-1]
    scales = [
        np.full(half.shape[-1], 1 / np.linalg.norm(half, axis=1).mean(), np.float32)
        for half in np.split(rows, range(width, rows.shape[-1], width), axis=-1)
    ]
    descriptor = layers["descriptor"](fused * np.concatenate(scales))
    outputs = [descriptor, layers["local"].output[0]] if local else descriptor
    return keras.Model(inputs, outputs), names


def train(config: DolgConfig, maps: Maps, rate: float, backbone_lr: float, steps: int, seed: int):
    """Trains the layers above the maps; returns a function from maps to unit descriptors.

    On photos, the backbone is trained too, at `backbone_lr` times the rate.
    """
    top, names = build_top(config, maps, seed)
    classes, labels = np.unique(maps.landmarks, return_inverse=True)
    head = ArcFace(len(classes), MARGIN, SCALE)
    head.build((None, config.descriptor_size))
    slow = top.get_layer("backbone").trainable_variables if names == ["photo"] else []
    paths = {variable.path for variable in slow}
    fast = [variable for variable in top.trainable_variables if variable.path not in paths]
    groups = [(fast + head.trainable_variables, rate), (slow, backbone_lr * rate)]
    groups = [(group, adam(group, rate, steps)) for group, rate in groups if group]

    @tf.function(reduce_retracing=True)
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            logits = head.logits(head(top(inputs, training=True)), targets, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [[v.value for v in group] for group, _ in groups])
        for gradient, (group, optimizer) in zip(gradients, groups, strict=True):
            optimizer.apply(gradient, group)
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


def adam(variables: list, rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Returns the built optimizer of a training of so many steps."""
    warmup = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, 0.0, warmup_target=rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)
    optimizer.build(variables)
    return optimizer


def score(queries, index, query_landmarks, index_landmarks) -> dict[str, list[float]]:
    """Returns average precision and hit at 1 per query over the whole index, as fractions."""
    return score_queries(queries @ index.T, index_landmarks == query_landmarks[:, None])


def untrained(maps: Maps) -> np.ndarray:
    """Returns untrained unit descriptors (N, C): GeM (p = 3) of the stride-32 map."""
    rows = np.arange(len(maps.landmarks))
    level = maps.arrays["p5"][rows, 0].astype(np.float32)
    return np.asarray(l2_normalize(GeM(3.0)(level)))


# --- one run, in its own process --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """A variant to train at one learning rate; `choose` scores it on the inner landmarks."""

    variant: str
    config: DolgConfig
    split: str
    rate: float
    backbone_lr: float
    steps: int
    seed: int
    choose: bool


_splits: Splits | None = None  # of this process


def _start(folder: str, cache: str, config: DolgConfig | None, together: tuple[int, ...]) -> None:
    global _splits
    end_with_parent()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    maps = compute_maps(pathlib.Path(folder), pathlib.Path(cache), config)
    _splits = Splits(maps, together)


def _do(job: Job) -> tuple[Job, dict]:
    if job.choose:
        train_maps, queries, index = _splits.inner(job.split)
    else:
        (train_maps, queries), index = _splits.outer(job.split), _splits.maps["index"]
    try:
        describe = train(job.config, train_maps, job.rate, job.backbone_lr, job.steps, job.seed)
    except FloatingPointError as error:
        return job, {"failed": str(error)}
    finally:
        keras.backend.clear_session()
    return job, score(describe(queries), describe(index), queries.landmarks, index.landmarks)


# --- the whole measurement ---------------------------------------------------------------------


def _read_state(path: pathlib.Path, budget: dict) -> dict:
    if not path.exists():
        return {"budget": budget, "chosen": {}, "runs": {}}
    state = files.read_json(path)
    if state["budget"] != budget:
        raise SystemExit(f"{path} belongs to other photos or settings; choose another --output")
    return state


def _variants(arguments) -> list[str]:
    """Returns the variants to train; the first is the baseline of the others."""
    wanted = arguments.variants or (VARIANTS | MORE if arguments.full else VARIANTS)
    return list(dict.fromkeys([ablation_table.FULL, *wanted]))


def _jobs(state: dict, arguments, config: DolgConfig) -> tuple[str, list[Job]]:
    """Returns the next piece of work, in words, and its jobs; no jobs when all is done.

    A variant's rates are chosen before its first seed. All variants finish a seed before the next
    one starts, so that results can be compared after an interruption.
    """
    rates = arguments.rates or (MORE_RATES if arguments.full else RATES)
    fixed = arguments.backbone_lr, arguments.steps
    for seed in range(arguments.seeds or (5 if arguments.full else 3)):
        for name in _variants(arguments):
            changed = dataclasses.replace(config, **(VARIANTS | MORE)[name])
            tried = {split: state["chosen"].get(name, {}).get(split, {}) for split in SPLITS}
            choices = [
                Job(name, changed, split, rate, *fixed, 100, True)
                for split in SPLITS
                for rate in rates
                if seed == 0 and str(rate) not in tried[split] and len(rates) > 1
            ]
            if choices:
                return f"{name}, learning rates", choices
            done = state["runs"].get(name, {}).get(str(seed), {})
            chosen = {
                split: float(max(found, key=found.get, default=rates[0]))
                for split, found in tried.items()
            }
            runs = [
                Job(name, changed, split, rate, *fixed, seed, False)
                for split, rate in chosen.items()
                if split not in done
            ]
            if runs:
                return f"{name}, seed {seed}", runs
    return "", []


def _note(state: dict, job: Job, found: dict) -> None:
    if job.choose:
        value = 0.0 if "failed" in found else float(np.mean(found["AP"]))
        state["chosen"].setdefault(job.variant, {}).setdefault(job.split, {})[str(job.rate)] = value
    else:
        runs = state["runs"].setdefault(job.variant, {}).setdefault(str(job.seed), {})
        runs[job.split] = {"rate": job.rate, **found}


def run(arguments) -> dict:
    """Computes the missing results and returns all of them, by variant, seed and split."""
    output, photos = pathlib.Path(arguments.output), pathlib.Path(arguments.photos)
    config = base_config(arguments.backbone, arguments.width)
    names = landmark_names(read_labels(photos / "labels.csv"))
    together = tuple(names.index(name) for name in arguments.together.split(",") if name)
    cache = str(output / "maps")
    taken = None if arguments.backbone_lr else config
    splits = Splits(compute_maps(photos, output / "maps", taken), together)
    budget = {"model": configs.to_dict(config), "steps": arguments.steps, "batch": BATCH}
    budget |= {"side": SIDE, "together": list(together), "loss": [SCALE, MARGIN]}
    budget |= {"backbone_lr": arguments.backbone_lr, "rates": arguments.rates}
    budget |= {"labels_sha256": files.sha256(photos / "labels.csv")}
    budget["variants"] = hashlib.sha256(repr({**VARIANTS, **MORE}).encode()).hexdigest()
    state = _read_state(output / "runs.json", json.loads(json.dumps(budget)))  # tuples become lists
    index, state["untrained"], state["landmarks"] = splits.maps["index"], {}, {}
    for split in SPLITS:
        queries = splits.queries(split)
        if not arguments.backbone_lr:
            rows = untrained(queries), untrained(index), queries.landmarks, index.landmarks
            state["untrained"][split] = score(*rows)
        state["landmarks"][split] = queries.landmarks.tolist()
    processes = os.cpu_count() or 1
    start = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        _start,
        (str(photos), cache, taken, together),
    ) as pool:
        while True:
            what, jobs = _jobs(state, arguments, config)
            if not jobs:
                break
            work = iter(progress.track(range(len(jobs)), len(jobs), what, "runs"))
            for chunk in range(0, len(jobs), processes):
                for job, found in pool.map(_do, jobs[chunk : chunk + processes]):
                    _note(state, job, found)
                    next(work, None)
                files.write_json(output / "runs.json", state)
                if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
                    print("the time is up; run the same command again to continue", flush=True)
                    return state
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--photos", required=True, help="folder of photos with a labels.csv")
    parser.add_argument("--output", required=True, help="folder of results")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument(
        "--width", type=int, default=128, help="channels of the local and the global feature"
    )
    parser.add_argument("--steps", type=int, default=100, help="training steps, of 32 photos each")
    parser.add_argument(
        "--seeds", type=int, default=0, help="seeds per variant; 0: 3, or 5 with --full"
    )
    parser.add_argument(
        "--together", default="", help="landmarks that show one another, separated by commas"
    )
    parser.add_argument("--full", action="store_true", help="more variants, rates and seeds")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[],
        choices=[*VARIANTS, *MORE],
        metavar="NAME",
        help=f"train only the full model and these, of {', '.join([*VARIANTS, *MORE])}",
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[],
        help=f"learning rates to choose from; default {RATES}, with --full {MORE_RATES}",
    )
    parser.add_argument(
        "--backbone_lr",
        type=float,
        default=0.0,
        help="learning rate of the backbone, relative to the other layers'; 0: frozen",
    )
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so many minutes; 0: run to the end"
    )
    arguments = parser.parse_args()
    taken = f"another process writes to {arguments.output}; wait for it, or choose another --output"
    with files.lock(pathlib.Path(arguments.output) / "lock", taken):
        state = run(arguments)
    ablation_table.write(pathlib.Path(arguments.output), state, ablation_table.FULL)


if __name__ == "__main__":
    main()
