"""The ranking step of the revisited scores at full size: counting places instead of sorting.

    python benchmarks/speed/ranking.py --rows=1006322

Descriptors are random, in a memory-mapped file. In the worst case, the photos that count are random
too, and their scores are spread over all others. In the case "alike" they are the best of 6,322
photos; most other photos score below all of them and can be skipped. Each round times everything in
turn, so that a busy machine slows all of it. The peak memory is that of the process after
`count_places`, including the pages of the mapped file.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from timing import peak_memory

from dolg_tf.retrieval.exact import places
from dolg_tf.retrieval.ground_truth import GroundTruth, Query
from dolg_tf.retrieval.rows import Rows, blocks

OWN = 6322  # photos of Revisited Paris; those that count are among them


def write_rows(path: pathlib.Path, rows: int, width: int) -> Rows:
    """Writes random unit rows block by block and returns them mapped."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:  # writing to a mapped file would count as memory
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, 65536):
            some = rng.standard_normal((min(65536, rows - start), width), np.float32)
            (some / np.linalg.norm(some, axis=1, keepdims=True)).tofile(file)
    return Rows([np.load(path, mmap_mode="r")])


def made_up_task(queries: int, rows: int, asked: int) -> GroundTruth:
    """Returns a ground truth in which `asked` random photos count for each query."""
    rng = np.random.default_rng(1)
    own, split = min(rows, OWN), [asked // 3, 2 * asked // 3]

    def query():
        chosen = rng.choice(own, min(asked, own), replace=False)
        return Query((0, 0, 1, 1), *map(np.sort, np.split(chosen, split)))

    names = tuple(f"{number}" for number in range(queries))
    return GroundTruth("made_up", (), names, tuple(query() for _ in names))


def product(index: Rows, queries: np.ndarray, out: np.ndarray | None = None) -> None:
    for start, block in blocks(index, places._BLOCK):
        scores = queries @ block.T
        if out is not None:
            out[:, start : start + len(block)] = scores


def argsort(scores: np.ndarray) -> None:
    for row in scores:
        np.argsort(-row)


def make_rankings(index: Rows, queries: np.ndarray, asked: list) -> list[places.Ranking]:
    known = places.KnownRows(index, np.unique(np.concatenate(asked)))
    scores = known.scores(queries)
    none = np.empty(0, np.int64)
    return [places.Ranking(known, *one, none) for one in zip(asked, scores, strict=True)]


def count(scores: np.ndarray, rankings: list, pool: ThreadPoolExecutor) -> None:
    for start in range(0, scores.shape[1], places._BLOCK):
        places.add_block(pool, rankings, start, scores[:, start : start + places._BLOCK])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000, help="photos to search")
    parser.add_argument("--queries", type=int, default=70)
    parser.add_argument("--width", type=int, default=512, help="length of a descriptor")
    parser.add_argument("--asked", type=int, default=350, help="photos that count for each query")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    asked = [rng.choice(OWN, given.asked, replace=False) for _ in range(given.queries)]
    queries = rng.standard_normal((given.queries, given.width), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    times = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(places._WORKERS) as pool:
        index = write_rows(pathlib.Path(folder) / "index.npy", given.rows, given.width)
        before = peak_memory() / 1e9
        list(places.count_places(index, queries, asked))
        peak = peak_memory() / 1e9
        scores = np.empty((given.queries, given.rows), np.float32)
        product(index, queries, scores)
        alike = list(np.argsort(-scores[:, :OWN])[:, : given.asked])
        parts = {
            "product": lambda: product(index, queries),
            "whole": lambda: list(places.count_places(index, queries, asked)),
            "argsort": lambda: argsort(scores),
            "counting": lambda: count(scores, rankings[0], pool),
            "counting, alike": lambda: count(scores, rankings[1], pool),
        }
        for _ in range(given.repeats):
            rankings = [make_rankings(index, queries, rows) for rows in (asked, alike)]
            for name, part in parts.items():
                start = time.perf_counter(), time.process_time()
                part()
                spent = time.perf_counter() - start[0], time.process_time() - start[1]
                times.setdefault(name, []).append(spent)
    print(f"{given.queries} queries x {given.rows:,} x {given.width}, {given.asked} photos count\n")
    print("| part | best s | median s | best CPU s |\n| --- | ---: | ---: | ---: |")
    for name, spent in times.items():
        wall, processor = zip(*spent, strict=True)
        cells = (min(wall), statistics.median(wall), min(processor))
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in cells) + " |")
    pairs = [("argsort", "counting"), ("argsort", "counting, alike"), ("whole", "product")]
    for over, under in pairs:
        for clock, what in enumerate(("s", "CPU s")):
            ratios = sorted(
                a[clock] / b[clock] for a, b in zip(times[over], times[under], strict=True)
            )
            text = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
            print(f"\n{over} / {under}, {what}: {text}")
    print(f"\npeak memory {peak:.2f} GB ({before:.2f} GB before)")


if __name__ == "__main__":
    main()
