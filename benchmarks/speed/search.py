"""Exact search beside NumPy and faiss, from one query to 1,000, and our approximate search.

    python benchmarks/speed/search.py
    python benchmarks/speed/search.py --rows=1000000 --exact_only

Prints one table. NumPy has the rows in memory, multiplies them and selects with `argpartition`;
faiss maps the same file as we do. For many queries there is a floor: the bare matrix product of the
same blocks, with nothing kept. All are timed in turn, so that a busy machine slows all of them;
medians count. Descriptors are made up, written block by block and read memory-mapped: 20 views per
landmark, whose cosine with one another is 0.5 on average. Memory is what a search added at its
peak, without mapped files, whose pages the system takes back when it needs them.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np
from timing import OwnMemory, Timer, status

from dolg_tf.retrieval.index import stages
from dolg_tf.retrieval.rows import blocks

BLOCK = 16384
VIEWS = 20


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_up(rows: int, width: int, queries: int):
    """Yields blocks of photos, landmark by landmark, then one block of queries."""
    per_block = BLOCK // VIEWS
    shown = np.random.default_rng(0).integers(-(-rows // (per_block * VIEWS)), size=queries)
    asked = []
    for number, start in enumerate(range(0, rows, per_block * VIEWS)):
        rng = np.random.default_rng([1, number])
        landmarks = rng.standard_normal((per_block, width), dtype=np.float32)
        views = np.repeat(landmarks, VIEWS, axis=0)
        views += rng.standard_normal(views.shape, dtype=np.float32)
        yield unit(views)[: rows - start]
        count = np.count_nonzero(shown == number)
        asked.append(
            landmarks[rng.integers(min(per_block, -(-(rows - start) // VIEWS)), size=count)]
        )
        asked[-1] = asked[-1] + rng.standard_normal(asked[-1].shape, dtype=np.float32)
    yield unit(np.concatenate(asked))


def write_set(folder: pathlib.Path, rows: int, width: int, queries: int) -> np.ndarray:
    """Writes a descriptor set as extraction would; returns the queries."""
    folder.mkdir()
    file = folder / "descriptors-00000-of-00001.npy"
    stored = np.lib.format.open_memmap(file, "w+", np.float32, (rows, width))
    start = 0
    for block in made_up(rows, width, queries):
        if start < rows:
            stored[start : start + len(block)] = block
        start += len(block)
    stored.flush()
    (folder / "ids.txt").write_text("".join(f"{row:08d}\n" for row in range(rows)))
    meta = dict.fromkeys(("image_root", "crop", "whitening")) | {"dtype": "float32"}
    meta |= {"format_version": 1, "model_hash": "made up", "bad": []}
    meta |= {"scales": [1.0], "max_side": 0}
    (folder / "meta.json").write_text(json.dumps(meta))
    return block


def floor(rows, queries: np.ndarray) -> None:
    for _, block in blocks(rows, BLOCK):
        queries @ block.T


def plain(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Returns the nearest rows by NumPy alone, for as many queries at a time as fit into memory."""
    found = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ rows.T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True))
    return hits / exact.size


def compare(runs: dict, count: int, rounds: int) -> None:
    """Prints the lines of the table for so many queries."""
    found, memory, timer = {}, {}, Timer()
    for name, run in runs.items():
        before, watch = status("RssAnon"), OwnMemory(0.001)
        found[name] = run()
        memory[name] = watch.stop() - before
        timer.add(name, run)
    timer.run(rounds, pause=0.1)
    for name in runs:
        seconds, rows = timer.median(name), found[name]
        over = seconds / timer.median("NumPy")
        share = "" if rows is None else f"{recall(rows, found['ours, exact']):.4f}"
        cells = f"{1e3 * seconds:.0f} | {over:.2f} | {memory[name] / 1e6:.0f} | {share}"
        print(f"| {count} | {name} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200000)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 10, 1000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exact_only", action="store_true", help="without IVF-PQ")
    args = parser.parse_args()
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        asked = write_set(folder / "set", args.rows, args.width, max(args.queries))
        settings = {"descriptors": str(folder / "set")}
        start = time.perf_counter()
        stages.build(stages.BuildConfig(output=str(folder / "flat"), **settings))
        built = [time.perf_counter() - start]
        if not args.exact_only:
            start = time.perf_counter()
            near = stages.build(
                stages.BuildConfig(output=str(folder / "pq"), kind="ivfpq", **settings)
            )
            built.append(time.perf_counter() - start)
        start = time.perf_counter()
        exact = stages.Index.open(folder / "flat")
        opened = time.perf_counter() - start
        flat = faiss.read_index(str(folder / "flat/index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        rows = np.asarray(exact.descriptors)
        print(f"{args.rows} x {args.width}, top {args.k}; built (exact, IVF-PQ) in", end=" ")
        print(", ".join(f"{seconds:.1f}" for seconds in built), f"s, opened in {opened:.2f} s")
        print("| queries | search | ms | over NumPy | memory, MB | share of the exact top |")
        print("| --- | --- | --- | --- | --- | --- |")
        for count in args.queries:
            queries = asked[:count]
            runs = {
                "NumPy": lambda queries=queries: plain(rows, queries, args.k),
                "ours, exact": lambda queries=queries: exact.search(queries, args.k).rows,
                "faiss IndexFlatIP": lambda queries=queries: flat.search(queries, args.k)[1],
            }
            if count >= 100:
                runs["matrix product"] = lambda queries=queries: floor(exact.descriptors, queries)
            if not args.exact_only:
                runs["IVF-PQ"] = lambda queries=queries: near.search(queries, args.k).rows
            compare(runs, count, args.rounds)


if __name__ == "__main__":
    main()
