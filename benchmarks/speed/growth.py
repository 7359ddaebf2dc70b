"""Time and memory against the number of photos: records, extraction, index, search, scores.

    python benchmarks/speed/growth.py

Descriptors are made up. Photos are a few procedural ones of 48 pixels, hard-linked under as many
names as needed. Extraction takes a stand-in SavedModel that averages colours, since a network would
hide the rest of the stage, whose growth is measured here. Each stage and size runs in its own
process: the best of three rounds, or of as many as fit into ten seconds. Memory is the peak of the
first round, beside what the process held before it. Slopes are least-squares fits of the logarithms
over the sizes: 1 means ten times as much for ten times the photos. The slope of the last step shows
what a fixed start-up hides. Writes the table into benchmarks/README.md, and a plot.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from stage_cases import WIDTH, draw_photos
from stages import README, read_block, write_block
from timing import peak_memory, restart_peak_memory, status

from dolg_tf.stage import files

QUERIES = 70
ROUNDS, ENOUGH = 3, 10.0  # seconds


# --- a stage and size, in its own process -----------------------------------------------------


def link_photos(folder: pathlib.Path, count: int) -> None:
    """Links a few procedural photos under many names, in the layout of GLDv2."""
    from records import photo_id

    photos = sorted(draw_photos(folder.with_name("toy"), 40, 48).rglob("*.jpg"))
    for number in range(count):
        name = photo_id(number)
        parent = folder.joinpath(*name[:3])
        parent.mkdir(parents=True, exist_ok=True)
        (parent / f"{name}.jpg").hardlink_to(photos[number % len(photos)])


def prepare_records(folder: pathlib.Path, count: int) -> Callable:
    from records import write_list

    from dolg_tf.data.records.build import RecordsConfig, build_records

    link_photos(folder / "photos", count)
    write_list(folder / "train.csv", count)
    options = {"train_csv": str(folder / "train.csv"), "images_dir": str(folder / "photos")}

    def build(number):
        output = str(folder / f"records{number}")
        build_records(RecordsConfig(**options, output_dir=output, processes=1))

    return build


def prepare_extraction(folder: pathlib.Path, count: int) -> Callable:
    import tensorflow as tf

    from dolg_tf.retrieval.extract.stage import ExtractConfig, extract

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
            tf.TensorSpec([None], tf.float32, "scales"),
        ]
    )
    def images(images, scales):
        colours = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))
        # The scales must be used, or they would not be an input of the graph.
        rows = tf.tile(colours, [1, WIDTH // 3]) * tf.reduce_sum(scales)
        return {"descriptors": tf.math.l2_normalize(rows, axis=-1)}

    tf.saved_model.save(tf.Module(), str(folder / "model"), {"images": images})
    about = {"format_version": 1, "scales": [1.0], "weights_sha256": "colours"}
    files.write_json(folder / "model" / "assets.extra" / "dolg.json", about)
    link_photos(folder / "photos", count)
    options = {"saved_model": str(folder / "model"), "images": str(folder / "photos")}
    return lambda number: extract(ExtractConfig(**options, output=str(folder / f"set{number}")))


def prepare_index(folder: pathlib.Path, count: int) -> Callable:
    import search

    from dolg_tf.retrieval.index.stages import BuildConfig, build

    search.write_set(folder / "set", count, WIDTH, 1)
    options = {"descriptors": str(folder / "set")}
    return lambda number: build(BuildConfig(**options, output=str(folder / f"index{number}")))


def prepare_search(folder: pathlib.Path, count: int) -> Callable:
    import search

    from dolg_tf.retrieval.index.stages import BuildConfig, build

    queries = search.write_set(folder / "set", count, WIDTH, QUERIES)
    options = {"descriptors": str(folder / "set"), "output": str(folder / "index")}
    built = build(BuildConfig(**options))
    return lambda number: built.search(queries, 100)


def prepare_evaluation(folder: pathlib.Path, count: int) -> Callable:
    import ranking

    from dolg_tf.evaluation.revisited.score import score_descriptors

    rows = ranking.write_rows(folder / "index.npy", count, WIDTH)
    queries = np.random.default_rng(2).standard_normal((QUERIES, WIDTH), np.float32)
    task = ranking.made_up_task(QUERIES, count, 350)
    return lambda number: score_descriptors(task, queries, rows)


STAGES = {
    "records": prepare_records,
    "extraction": prepare_extraction,
    "index build": prepare_index,
    "search": prepare_search,
    "evaluation": prepare_evaluation,
}


def measure(work: Callable) -> dict:
    """Returns seconds, and bytes before and at the peak; `work` takes the number of the round."""
    before, seconds = status("VmRSS"), []
    restart_peak_memory()
    while not seconds or (len(seconds) < ROUNDS and sum(seconds) + seconds[-1] < ENOUGH):
        start = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            peak = peak_memory()
    return {"seconds": min(seconds), "before": before, "peak": peak}


# --- slopes, table, plot ------------------------------------------------------------------------


def slope(counts, values) -> float:
    """Returns the exponent of growth: the slope of log(values) over log(counts)."""
    x, y = np.log(counts), np.log(values)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def table(found: dict[str, dict[int, dict]]) -> list[str]:
    """Returns the lines of two tables: measurements and slopes.

    Args:
      found: {stage: {photos: result of `measure`}}, at least two sizes, ascending.
    """
    lines = ["| stage | photos | s | MB before | MB at the peak |", "| --- " * 5 + "|"]
    for stage, sizes in found.items():
        for count, of in sizes.items():
            megabytes = f"{of['before'] / 1e6:.0f} | {of['peak'] / 1e6:.0f}"
            lines.append(f"| {stage} | {count:,} | {of['seconds']:.3g} | {megabytes} |")
    lines += ["", "| slope | time | last step | memory | last step | memory above before |"]
    lines.append("| --- " * 6 + "|")
    for stage, sizes in found.items():
        counts = [*sizes]
        seconds = [of["seconds"] for of in sizes.values()]
        peak = [of["peak"] for of in sizes.values()]
        # At least a page: small work may fit into memory that the process already has.
        above = [max(of["peak"] - of["before"], 4096) for of in sizes.values()]
        slopes = [
            slope(counts, seconds),
            slope(counts[-2:], seconds[-2:]),
            slope(counts, peak),
            slope(counts[-2:], peak[-2:]),
            slope(counts, above),
        ]
        lines.append(f"| {stage} | {' | '.join(f'{value:.2f}' for value in slopes)} |")
    return lines


def write_plot(path: pathlib.Path, found: dict[str, dict[int, dict]]) -> None:
    """Plots time and peak memory against the number of photos, on logarithmic axes."""
    from matplotlib import style
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    with style.context("tableau-colorblind10"):
        panels = figure.subplots(1, 2)
    for axes, (key, factor, label) in zip(
        panels, [("seconds", 1, "time, s"), ("peak", 1e-6, "peak memory, MB")], strict=True
    ):
        for mark, (stage, sizes) in zip("os^Dv", found.items(), strict=False):
            values = [factor * of[key] for of in sizes.values()]
            axes.loglog([*sizes], values, marker=mark, label=stage)
        axes.set_xlabel("photos")
        axes.set_ylabel(label)
        axes.grid(color="#d9d9d9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        # A straight line of slope 1 beside the curves, through the middle of the panel.
        counts = np.array([*next(iter(found.values()))], float)
        middle = np.sqrt(np.prod(axes.get_ylim()))
        guide = middle * counts / np.sqrt(counts[0] * counts[-1])
        axes.loglog(counts, guide, color="#8a8a8a", linestyle=":", label="slope 1")
    panels[0].legend(fontsize=8)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--stages", nargs="+", default=[*STAGES], choices=[*STAGES])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).with_name("growth.png"),
        help="file of the plot",
    )
    parser.add_argument("--readme", type=pathlib.Path, default=README, help="file with the table")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # stage, photos
    arguments = parser.parse_args()
    if arguments.one:
        stage, count = arguments.one
        with tempfile.TemporaryDirectory() as folder:
            work = STAGES[stage](pathlib.Path(folder), int(count))
            print(json.dumps(measure(work)))
        return
    try:
        read_block(arguments.readme, "growth")  # fails before the work, not after it
    except ValueError as error:
        parser.error(str(error))
    found = {}
    for stage in arguments.stages:
        for count in sorted(arguments.sizes):
            command = [sys.executable, __file__, "--one", stage, str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.setdefault(stage, {})[count] = json.loads(done.stdout.splitlines()[-1])
            print(stage, count, found[stage][count], file=sys.stderr, flush=True)
    lines = table(found)
    print("\n".join(lines))
    write_block(arguments.readme, "growth", lines)
    write_plot(arguments.output, found)


if __name__ == "__main__":
    main()
