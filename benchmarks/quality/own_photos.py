"""A folder of photos without labels: what the whitening by groups gains, and that it never harms.

    DOLG_REAL_PHOTOS=folder python benchmarks/quality/own_photos.py --output=runs/own_photos

The folder holds photos and a labels.csv with the columns path, landmark and split; the labels only
score. A descriptor is GeM of ImageNet's EfficientNet-Lite0 (1,280 numbers, nothing trained), of the
photo at most 320 px long and of the same 1.4142 times as large, summed. OUTPUT keeps descriptors.
The rules were chosen on half of the landmarks, "seen"; "unseen" is the other half. Prints tables in
percent:

1. queries in the index, the photos of all splits adapted to, or those without the queries, or the
   index alone; also with re-ranking.
2. few photos of each place, each asked among the others, means and worst of three draws.
3. folders of other kinds: places of unequal size, bursts, photos of nothing twice.
"""

import argparse
import collections
import os
import pathlib
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from photo_scores import mean_scores

from dolg_tf.data import images
from dolg_tf.data.own_photos import read_labels
from dolg_tf.data.procedural.write import ToyConfig, write_toy
from dolg_tf.modeling.layers import l2_normalize
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.whitening import choose
from dolg_tf.stage import progress
from dolg_tf.weights.ready import load_ready

WEIGHTS = "efficientnet_lite0"
SIDE, SCALES, BATCH = 320, (1.0, 2**0.5), 8  # pixels, and photos of one size at a time
COUNTS = (2, 3, 4, 6, 10, 20)
DRAWS = 3
RERANKERS = (
    RerankConfig(rerank="superglobal"),
    RerankConfig(rerank="alpha_qe", rerank_k=3),
    RerankConfig(rerank="alpha_qe", rerank_k=10),
)


# --- descriptors ---------------------------------------------------------------------


def _load(path: pathlib.Path) -> tf.Tensor:
    """Returns a photo as uint8 RGB, at most `SIDE` pixels long."""
    photo = images.decode(tf.io.read_file(str(path)))
    scale = min(1.0, SIDE / max(photo.shape[:2]))
    if scale == 1:
        return photo
    levels = images.resize_levels(photo, *images.scaled_size(*photo.shape[:2], scale))
    return tf.cast(tf.round(255 * levels), tf.uint8)


def describe(paths: list[pathlib.Path]) -> np.ndarray:
    """Returns unit descriptors (N, 1280) of photos."""
    network = load_ready(WEIGHTS).network
    signature = [tf.TensorSpec([None, None, None, 3])]

    @tf.function(input_signature=signature)
    def call(photos):
        return l2_normalize(network(photos, training=False))

    found, waiting = np.zeros((len(paths), network.output_shape[-1]), np.float32), {}

    def flush(size: tuple[int, int]) -> None:
        rows, photos = zip(*waiting.pop(size), strict=True)
        for scale in SCALES:
            sides = images.scaled_size(*size, scale)
            found[list(rows)] += call(images.resize_levels(tf.stack(photos), *sides)).numpy()

    for row, path in enumerate(progress.track(paths, len(paths), "describe", "photos")):
        photo = _load(path)
        size = tuple(photo.shape[:2])
        waiting.setdefault(size, []).append((row, photo))
        if len(waiting[size]) == BATCH:
            flush(size)
    for size in list(waiting):
        flush(size)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _kept(path: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray:
    if not path.exists():
        np.save(path, describe(paths))
    return np.load(path)


def single_photos(output: pathlib.Path) -> np.ndarray:
    """Returns descriptors of 400 procedural photos, none of which shows the place of another."""
    folder = output / "procedural"
    write_toy(
        ToyConfig(
            output=str(folder),
            landmarks=400,
            unseen_landmarks=1,
            photos_per_landmark=1,
            index_per_landmark=3,
            size=SIDE,
        )
    )
    return _kept(output / "procedural.npy", sorted((folder / "train").rglob("*.jpg")))


def read_photos(
    photos: pathlib.Path, output: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns descriptors (N, 1280), number of the landmark (N,) and split (N,) of all photos."""
    output.mkdir(parents=True, exist_ok=True)
    labels = read_labels(photos / "labels.csv")
    listed = [(photos / path, name, split) for split in labels for path, name in labels[split]]
    paths, names, split = zip(*listed, strict=True)
    _, places = np.unique(names, return_inverse=True)
    return _kept(output / "photos.npy", list(paths)), places, np.array(split)


# --- scores --------------------------------------------------------------------------


def adapt(learned: np.ndarray, *others: np.ndarray) -> tuple[choose.Grouping, list[np.ndarray]]:
    """Returns the groups of some photos, and the others' descriptors adapted to them."""
    found = choose.adapt(learned)
    if not found.grouping.passes:
        return found.grouping, list(others)
    rows = [(x - found.mean) @ found.projection for x in others]
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    return found.grouping, [x.astype(np.float32) for x in rows]


def among(rows: np.ndarray, places: np.ndarray) -> float:
    """Returns mAP in percent, each photo asked among the others, where one is right."""
    similarities = rows @ rows.T
    same = places[:, None] == places
    np.fill_diagonal(same, False)
    np.fill_diagonal(similarities, -np.inf)
    asked = same.any(axis=1)
    return 100 * mean_scores(similarities[asked], same[asked])[0]


def reranked(settings: RerankConfig, queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns similarities (Q, N) whose order is that of a re-ranked search."""
    found = methods.apply(settings, queries, index)
    similarities = found.queries @ np.asarray(found.index[:]).T
    if found.head is not None:
        places = np.arange(found.head.shape[1], 0, -1)
        np.put_along_axis(similarities, found.head, 2.0 + places, 1)
    return similarities


def _cells(similarities: np.ndarray, same: np.ndarray) -> str:
    return " | ".join(f"{100 * value:.1f}" for value in mean_scores(similarities, same))


def print_queries(name: str, rows: np.ndarray, places: np.ndarray, split: np.ndarray) -> None:
    """Prints table 1 for some landmarks."""
    queries, index = split == "query", split == "index"
    same = places[queries][:, None] == places[index]
    raw = rows[queries], rows[index]
    print(f"| {name} | as it comes | | {_cells(raw[0] @ raw[1].T, same)} |")
    everything = np.ones(len(rows), bool)
    sets = {"all photos": everything, "without the queries": ~queries, "the index": index}
    for learned, chosen in sets.items():
        found, adapted = adapt(rows[chosen], *raw)
        told = f"{found.groups} groups of {found.grouped} photos, purity {found.purity:.2f}"
        print(f"| {name} | {learned} | {told} | {_cells(adapted[0] @ adapted[1].T, same)} |")
        for settings in RERANKERS if learned == "without the queries" else ():
            numbers = " ".join(f"{key}={value:g}" for key, value in settings.numbers().items())
            cells = _cells(reranked(settings, *adapted), same)
            print(f"| {name} | the same | {settings.rerank} {numbers} | {cells} |", flush=True)


def draw(places: np.ndarray, counts: list[int], rng: np.random.Generator) -> np.ndarray:
    """Returns rows: as many photos of each place, in random order of the places, as it counts."""
    rows = []
    for place, count in zip(rng.permutation(np.unique(places)), counts, strict=True):
        rows.append(rng.permutation(np.flatnonzero(places == place))[:count])
    return np.sort(np.concatenate(rows))


def print_folders(name: str, kind: str, folders: list) -> None:
    """Prints a row of table 2 or 3: folders are (descriptors, places)."""
    raw, adapted, words = [], [], collections.Counter()
    for rows, places in folders:
        found, (white,) = adapt(rows, rows)
        raw.append(among(rows, places))
        adapted.append(among(white, places))
        words["adapted" if found.passes else "unchanged"] += 1
    gains = np.subtract(adapted, raw)
    told = ", ".join(f"{word} {times}" for word, times in words.items())
    print(
        f"| {name} | {kind} | {len(folders[0][0])} | {np.mean(raw):.1f} | {np.mean(adapted):.1f} "
        f"| {gains.mean():+.1f} | {gains.min():+.1f} | {told} |",
        flush=True,
    )


def burst(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns rows that are nearly equal: cosine 0.99."""
    noise = rng.standard_normal(rows.shape) * 0.14 / np.sqrt(rows.shape[1])
    found = rows + noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def print_kinds(name: str, rows: np.ndarray, places: np.ndarray, single: np.ndarray) -> None:
    """Prints table 3 for some landmarks."""
    number, kinds = len(np.unique(places)), collections.defaultdict(list)
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        few = draw(places, [80] * 3 + [2] * (number - 3), rng)
        kinds["3 places of up to 80, the others of 2"].append((rows[few], places[few]))
        falling = draw(places, [max(2, 80 // (place + 1)) for place in range(number)], rng)
        kinds["80, 40, 27, 20 ... 2 photos of a place"].append((rows[falling], places[falling]))
        some = draw(places, [6] * number, rng)
        mixed = np.concatenate([rows[some], single])
        alone = -1 - np.arange(len(single))
        kinds["6 of each, and 400 of nothing twice"].append(
            (mixed, np.concatenate([places[some], alone]))
        )
        two = draw(places, [2] * number, rng)
        copies = np.concatenate([rows[two], burst(rows[two], rng), burst(rows[two], rng)])
        kinds["2 of each, in bursts of 3"].append((copies, np.tile(places[two], 3)))
    for kind, folders in kinds.items():
        print_folders(name, kind, folders)


def read_arguments(doc: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder of photos and the folder of descriptors that a user names."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--output", required=True, help="folder of descriptors")
    output = pathlib.Path(parser.parse_args().output)
    if "DOLG_REAL_PHOTOS" not in os.environ:
        sys.exit("set DOLG_REAL_PHOTOS to a folder of photos with a labels.csv")
    return pathlib.Path(os.environ["DOLG_REAL_PHOTOS"]), output


def main() -> None:
    photos, output = read_arguments(__doc__)
    rows, places, split = read_photos(photos, output)
    number = places.max() + 1
    seen = np.isin(places, np.random.default_rng(7).permutation(number)[: (number + 1) // 2])
    parts = {"seen": seen, "unseen": ~seen, "all": seen | ~seen}
    print("| landmarks | adapted to | groups or re-ranking | mAP | R@1 |\n" + "| --- " * 5 + "|")
    for name, part in parts.items():
        print_queries(name, rows[part], places[part], split[part])
    print(
        "\n| landmarks | folder | photos | raw | adapted | gain | worst | |\n" + "| --- " * 8 + "|"
    )
    for name, part in parts.items():
        for count in COUNTS:
            folders = []
            for seed in range(DRAWS):
                chosen = draw(
                    places[part],
                    [count] * len(np.unique(places[part])),
                    np.random.default_rng(seed),
                )
                folders.append((rows[part][chosen], places[part][chosen]))
            print_folders(name, f"{count} of each place", folders)
    single = single_photos(output)
    for name, part in parts.items():
        print_kinds(name, rows[part], places[part], single)
    found, _ = adapt(single)
    print(f"\n400 photos of nothing twice: {'adapted' if found.passes else 'unchanged'}; {found}")


if __name__ == "__main__":
    main()
