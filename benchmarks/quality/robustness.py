"""Drift of descriptors when photos are changed; gain and cost of photo size and scales.

    python benchmarks/quality/robustness.py --saved_model=DIR --photos=$DOLG_REAL_PHOTOS --output=D

The folder holds photos and a labels.csv with the columns path, landmark and split. Queries are
searched in the index. Drift is the cosine between the descriptors of a query and of the same photo
mirrored, compressed, resized or cropped, all at one scale. Cosines between different photos serve
as yardsticks. R@1 is the share of queries whose first result shows the landmark. The second table
has mAP over the whole ranking for each photo size and number of scales, which queries and index
share. Cost is the CPU time of all threads, one photo at a time, without decoding and resizing. Each
photo is described once before, so that the first call at a new size does not count.

Prints two tables and writes robustness.md, robustness.json (fractions) and robustness.png.
"""

import collections
import dataclasses
import functools
import io
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from photo_scores import mean_scores

from dolg_tf.data.own_photos import read_labels
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.extract.ahead import decode_ahead
from dolg_tf.retrieval.extract.batches import describe_batches
from dolg_tf.retrieval.extract.decoding import WHOLE
from dolg_tf.retrieval.extract.model import Describe, LoadedModel, load_model, open_describer
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage import command, files, progress
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError

Change = Callable[[np.ndarray], np.ndarray]  # of uint8 RGB (H, W, 3)

SIDES = (160, 224, 288, 320, 448)  # pixels
SCALES = (SCALE_SETS["one"], (1.0, 1.4142), SCALE_SETS["three"], SCALE_SETS["five"])
SAMPLE = 100  # changed queries, at most
TIMED = 32  # timed photos, at most
BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """The network and the photos."""

    saved_model: str = configs.option("SavedModel of mode serving")
    photos: str = configs.option("folder of photos with a labels.csv: path,landmark,split")
    output: str = configs.option("folder of robustness.md, robustness.json and robustness.png")


# --- changes of a photo -----------------------------------------------------------------------


def resize_by(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns the image with sides times `factor`, rounded; antialiased if it shrinks."""
    from PIL import Image

    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_to(image: np.ndarray, side: int) -> np.ndarray:
    """Returns the image with a longest side of `side` pixels, enlarged if it is smaller."""
    return resize_by(image, side / max(image.shape[:2]))


def central_crop(image: np.ndarray, area: float) -> np.ndarray:
    """Returns the middle of the image, with its aspect ratio and a share `area` of its area."""
    height, width = (max(1, round(side * area**0.5)) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Returns the image after JPEG compression at a quality of 1 to 95."""
    import tensorflow as tf
    from PIL import Image

    from dolg_tf.data import images

    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    return images.decode(tf.constant(encoded.getvalue())).numpy()


CHANGES: dict[str, Change] = {
    "unchanged": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    **{
        f"JPEG quality {quality}": functools.partial(compress, quality=quality)
        for quality in (90, 70, 50, 30, 10)
    },
    **{
        f"sides times {factor:g}": functools.partial(resize_by, factor=factor)
        for factor in (0.25, 0.5, 0.71, 1.41, 2.0)
    },
    **{
        f"middle {area:.0%} of the area": functools.partial(central_crop, area=area)
        for area in (0.9, 0.75, 0.5, 0.25)
    },
}


# --- photos -> descriptors --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """Photos, and the landmark that each shows, str (N,)."""

    photos: list[Photo]
    landmarks: np.ndarray


def read_splits(folder: pathlib.Path) -> tuple[Split, Split]:
    """Returns queries and index of a folder's labels.csv.

    Raises:
      InputError: when the index lacks the landmark of a query, or has only one landmark.
    """
    labels = read_labels(folder / "labels.csv")
    queries, index = (
        Split(
            [Photo(path, folder / path) for path, _ in labels[name]],
            np.array([landmark for _, landmark in labels[name]]),
        )
        for name in ("query", "index")
    )
    alone = np.setdiff1d(queries.landmarks, index.landmarks)
    if alone.size:
        raise InputError(
            f"{folder / 'labels.csv'}: {str(alone[0])!r} has queries but no photo of split index; "
            "add some, or remove its queries"
        )
    if len(np.unique(index.landmarks)) < 2:
        raise InputError(f"{folder / 'labels.csv'}: the index has only one landmark; add others")
    return queries, index


def spread(landmarks: np.ndarray, count: int) -> list[int]:
    """Returns at most `count` rows, spread evenly over the landmarks.

    Args:
      landmarks: (N,), the landmark of each photo.
      count: number of rows; those of a landmark are drawn at random, with a fixed seed.
    """
    seen, drawn = collections.Counter(), []
    for row in np.random.default_rng(0).permutation(len(landmarks)):
        drawn.append((seen[landmarks[row]], int(row)))
        seen[landmarks[row]] += 1
    return sorted(row for _, row in sorted(drawn)[:count])


def longest_side(photo: Photo) -> int:
    from PIL import Image

    with Image.open(photo.path) as image:
        return max(image.size)


def describe_changed(
    describe: Describe, photos: list[Photo], changes: Sequence[Change], what: str
) -> np.ndarray:
    """Returns descriptors, float32 (changes, photos, D), of each photo under each change."""

    def changed():
        decoded = progress.track(decode_ahead(photos, WHOLE), len(photos), what)
        for row, image in enumerate(decoded):
            if isinstance(image, str):
                raise InputError(f"{image}; repair the file, or remove it from labels.csv")
            for number, change in enumerate(changes):
                yield number * len(photos) + row, change(image)

    rows, _ = describe_batches(changed(), describe, len(changes) * len(photos), BATCH)
    return rows.reshape(len(changes), len(photos), -1)


def cost(describe: Describe, photos: list[Photo], change: Change) -> float:
    """Returns the CPU milliseconds per described photo."""
    spent = 0.0
    for image in decode_ahead(photos, WHOLE):
        batch = change(image)[None]
        describe(batch)  # traces the graph and prepares the kernels for this size
        start = time.process_time()
        describe(batch)
        spent += time.process_time() - start
    return 1000 * spent / len(photos)


# --- descriptors -> numbers -------------------------------------------------------------------


def score(cosines: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Returns mAP over the whole ranking and R@1, fractions.

    Args:
      cosines: (Q, N), between queries and index.
      same: bool (Q, N), true where both show the same landmark; at least once per query.
    """
    return dict(zip(("mAP", "R@1"), mean_scores(cosines, same), strict=True))


def summary(cosines: np.ndarray) -> dict[str, float]:
    return {"mean": float(np.mean(cosines)), "p5": float(np.quantile(cosines, 0.05))}


def drift(
    changed: np.ndarray, index: np.ndarray, same: np.ndarray
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Returns the cosine to the unchanged photo and R@1 of each change, and the yardsticks.

    Args:
      changed: (changes, Q, D), in the order of `CHANGES`, unchanged first; unit L2 norm.
      index: (N, D), unit L2 norm.
      same: bool (Q, N), true where both show the same landmark.
    """
    moved = {
        name: summary(np.sum(rows * changed[0], axis=1))
        | {"R@1": score(rows @ index.T, same)["R@1"]}
        for name, rows in zip(CHANGES, changed, strict=True)
    }
    cosines = changed[0] @ index.T
    others = {"another photo of the landmark": same, "a photo of another landmark": ~same}
    return moved, {name: summary(cosines[which]) for name, which in others.items()}


# --- numbers -> page --------------------------------------------------------------------------


def table(head: Sequence[str], rows: list[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(found: dict) -> str:
    drifts = [
        (
            name,
            f"{row['mean']:.3f}",
            f"{row['p5']:.3f}",
            f"{row['R@1']:.1%}" if "R@1" in row else "",
        )
        for name, row in (found["drift"] | found["yardstick"]).items()
    ]
    costs = [
        (
            "own" if key == "scales" else str(number),
            ", ".join(f"{scale:g}" for scale in row["scales"]),
            f"{row['mAP']:.1%}",
            f"{row['R@1']:.1%}",
            f"{row['cpu_ms']:.1f}",
        )
        for key in ("sides", "scales")
        for number, row in found[key].items()
    ]
    photos = found["photos"]
    low, middle, high = photos["longest_side"]
    return "\n\n".join(
        (
            f"{photos['query']} queries, {photos['index']} index photos, longest side {low} to "
            f"{high} pixels (median {middle}); {photos['changed']} queries were changed.",
            table(("photo", "mean cosine", "5th percentile", "R@1"), drifts),
            table(("longest side", "scales", "mAP", "R@1", "CPU ms per photo"), costs),
        )
    )


def plot(found: dict, path: pathlib.Path) -> None:
    """Plots mAP and cost against photo size and against the number of scales."""
    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    most = max(row["cpu_ms"] for key in ("sides", "scales") for row in found[key].values())
    for axes, key, label in zip(
        panels,
        ("sides", "scales"),
        ("longest side at one scale, pixels", "number of scales at the photos' own size"),
        strict=True,
    ):
        x, rows = list(found[key]), found[key].values()
        axes.plot(x, [100 * row["mAP"] for row in rows], "o-", color="tab:blue")
        axes.set_xlabel(label)
        axes.set_xticks(x)
        axes.grid(axis="y", alpha=0.3)
        costs = axes.twinx()
        costs.plot(x, [row["cpu_ms"] for row in rows], "s--", color="tab:orange")
        costs.set_ylim(0, 1.1 * most)
        last = axes is panels[-1]
        costs.tick_params(right=last, labelright=last, labelcolor="tab:orange")
    panels[0].set_ylabel("mAP, percent", color="tab:blue")
    costs.set_ylabel("CPU per photo, milliseconds", color="tab:orange")
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary)


# --- the whole measurement ---------------------------------------------------------------------


def measure_setting(
    model: LoadedModel,
    photos: tuple[list[Photo], list[Photo]],
    same: np.ndarray,
    scales: tuple[float, ...],
    change: Change,
    what: str,
) -> tuple[dict[str, float], np.ndarray]:
    """Returns scores and cost under one setting, and the descriptors of the index.

    Args:
      model: the network.
      photos: queries and index.
      same: bool (queries, index), true where both show the same landmark.
      scales: factors of a photo's sides.
      change: brings a photo to its size.
      what: the setting, as the progress names it.
    """
    both = [*photos[0], *photos[1]]
    describe = functools.partial(model.describe, scales=scales)
    (rows,) = describe_changed(describe, both, [change], what)
    queries, index = np.split(rows, [len(photos[0])])
    timed = np.linspace(0, len(both) - 1, min(TIMED, len(both))).astype(int)
    spent = cost(describe, [both[row] for row in timed], change)
    return score(queries @ index.T, same) | {"cpu_ms": spent, "scales": scales}, index


def measure(settings: RobustnessConfig) -> None:
    """Measures drift when photos are changed, and gain and cost of photo size and scales."""
    output = pathlib.Path(settings.output)
    describer = open_describer(settings.saved_model, (1.0,))
    queries, index = read_splits(pathlib.Path(settings.photos))
    same = queries.landmarks[:, None] == index.landmarks
    model = load_model(settings.saved_model, (1.0,))
    measured = functools.partial(measure_setting, model, (queries.photos, index.photos), same)
    by_scales = {
        len(scales): measured(scales, CHANGES["unchanged"], f"scales {len(scales)}")
        for scales in SCALES
    }
    sides = {
        side: measured((1.0,), functools.partial(resize_to, side=side), f"side {side}")[0]
        for side in SIDES
    }
    chosen = spread(queries.landmarks, SAMPLE)
    photos = [queries.photos[row] for row in chosen]
    changed = describe_changed(model.describe, photos, list(CHANGES.values()), "changed queries")
    moved, others = drift(changed, by_scales[1][1], same[chosen])
    longest = [longest_side(photo) for photo in (*queries.photos, *index.photos)]
    found = {
        "model_hash": describer.model_hash,
        "photos": {
            "query": len(queries.photos),
            "index": len(index.photos),
            "changed": len(photos),
            "longest_side": [int(x) for x in np.quantile(longest, [0, 0.5, 1], method="lower")],
        },
        "drift": moved,
        "yardstick": others,
        "sides": sides,
        "scales": {count: row for count, (row, _) in by_scales.items()},
    }
    text = markdown(found)
    files.write_json(output / "robustness.json", found)
    files.write_text(output / "robustness.md", text + "\n")
    plot(found, output / "robustness.png")
    print(text)


if __name__ == "__main__":
    command.main(measure, RobustnessConfig)
