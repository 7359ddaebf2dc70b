"""Exact search beside its floor, faiss' exact search and our approximate one.

    python benchmarks/speed/search.py
    python benchmarks/speed/search.py --rows=1000000 --queries=1000

Prints one table. The floor is the bare matrix product of the same blocks, with nothing kept. Each
round times all rows in turn, so that a busy machine slows all of them; the best round counts.
Descriptors are made up, written block by block and read memory-mapped: 20 views per landmark, whose
cosine with one another is 0.5 on average. Memory is the peak of what was resident, without mapped
files, whose pages the system takes back when it needs them.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np
from timing import OwnMemory

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import blocks
from dolg_tf.retrieval.index import stages

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
    meta |= {"format_version": descriptors.FORMAT_VERSION, "model_hash": "made up", "bad": []}
    meta |= {"scales": [1.0], "max_side": 0}
    (folder / "meta.json").write_text(json.dumps(meta))
    return block


def floor(rows, queries: np.ndarray) -> None:
    for _, block in blocks(rows, BLOCK):
        queries @ block.T


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True))
    return hits / exact.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import faiss

    memory = OwnMemory()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        queries = write_set(folder / "set", args.rows, args.width, args.queries)
        settings = {"descriptors": str(folder / "set")}
        start = time.perf_counter()
        exact = stages.build(stages.BuildConfig(output=str(folder / "flat"), **settings))
        built = [time.perf_counter() - start]
        start = time.perf_counter()
        near = stages.build(stages.BuildConfig(output=str(folder / "pq"), kind="ivfpq", **settings))
        built.append(time.perf_counter() - start)
        start = time.perf_counter()
        exact = stages.Index.open(folder / "flat")
        opened = time.perf_counter() - start
        flat = faiss.read_index(str(folder / "flat/index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        runs = {
            "matrix product (floor)": lambda: floor(exact.descriptors, queries),
            "ours, exact": lambda: exact.search(queries, args.k).rows,
            "faiss IndexFlatIP": lambda: flat.search(queries, args.k)[1],
            "IVF-PQ": lambda: near.search(queries, args.k).rows,
        }
        best, found = dict.fromkeys(runs, np.inf), {}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                found[name] = run()
                best[name] = min(best[name], time.perf_counter() - start)
        print(f"{args.rows} x {args.width}, top {args.k} of {args.queries} queries")
        print(f"build {built[0]:.1f} s, IVF-PQ {built[1]:.1f} s; open {opened:.2f} s")
        print(f"peak anonymous memory {memory.most / 1e9:.2f} GB")
        print("| search | seconds | over the floor | share of the exact top |")
        print("| --- | --- | --- | --- |")
        for name, seconds in best.items():
            over = seconds / best["matrix product (floor)"]
            share = (
                "" if found[name] is None else f"{recall(found[name], found['ours, exact']):.4f}"
            )
            print(f"| {name} | {seconds:.2f} | {over:.2f} | {share} |")


if __name__ == "__main__":
    main()
