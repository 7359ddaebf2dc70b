"""Kaggle submissions: time against queries times index photos, and peak memory.

    python benchmarks/speed/submission.py

`dolg submit` turns random unit descriptors of 512 numbers into a CSV, for several sizes in turn. A
pair is a query and an index photo. The CPU time per pair is compared with that of the bare matrix
product of the same blocks, in the same process right before and after, so that a busy machine slows
both. The cost of a query that does not depend on the index shows in their ratio as a term in
1 / index photos. The line through the ratios of retrieval gives the ratio at GLDv2's full size,
117,577 queries by 761,757 index photos, and with the quickest product the CPU hours.

Peak memory is the process' own, above what it held before. Pages of the index on disk do not count:
the system keeps them while there is room and drops them when there is none.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np
from timing import OwnMemory, status

from dolg_tf.evaluation.gldv2.submission import SubmissionConfig, write_submission
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact.blocks import BLOCK
from dolg_tf.retrieval.rows import blocks

FULL_QUERIES, FULL_INDEX = 117_577, 761_757
WIDTH = 512
_ROWS = 16384  # index photos multiplied at once


def make_set(path: pathlib.Path, prefix: str, count: int, seed: int) -> None:
    """Writes a descriptor set with ids like GLDv2's."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, WIDTH), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = ("image_root", "model_hash", "scales", "crop", "max_side", "whitening")
    names = [f"{number:015x}"[::-1] + prefix for number in range(count)]
    ids = tuple(f"{name[0]}/{name[1]}/{name[2]}/{name}" for name in names)
    descriptors.write(path, DescriptorSet(ids, rows, {**dict.fromkeys(keys), "bad": []}))


def time_product(queries: np.ndarray, index, most: int = 4) -> float:
    """Returns the CPU seconds of the product, extrapolated from a few blocks of queries."""
    start, few = time.process_time(), queries[: most * BLOCK]
    for _, block in blocks(few, BLOCK):
        for _, rows in blocks(index, _ROWS):
            block @ rows.T
    return (time.process_time() - start) * len(queries) / len(few)


def run(
    folder: pathlib.Path, task: str, queries: int, index: int, non_landmarks: int
) -> tuple[float, float]:
    """Makes one submission and prints its line of the table.

    Returns:
      (ratio, nanoseconds): CPU time over that of the product, and the product's per pair.
    """
    sets = {"query_descriptors": folder / f"q{queries}", "index_descriptors": folder / f"i{index}"}
    pairs = queries * index
    if task == "recognition":
        sets["train_csv"] = folder / "train.csv"
    if non_landmarks:
        sets["non_landmarks"] = folder / f"n{non_landmarks}"
        pairs += (queries + index) * non_landmarks
    rows = [descriptors.read(path).descriptors for path in list(sets.values())[:2]]
    product = [time_product(rows[0][:], rows[1])]
    settings = SubmissionConfig(
        task=task, output=str(folder / "out.csv"), **{key: str(path) for key, path in sets.items()}
    )
    before, memory = status("RssAnon"), OwnMemory()
    start, cpu = time.perf_counter(), time.process_time()
    write_submission(settings)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    most = memory.stop() - before
    product.append(time_product(rows[0][:], rows[1]))
    a_pair = float(np.mean(product)) / (queries * index)
    name = f"{task}, {non_landmarks:,} non-landmarks" if non_landmarks else task
    print(
        f"| {name} | {queries:,} x {index:,} | {took:.1f} | {1e9 * cpu / pairs:.1f} | "
        f"{1e9 * a_pair:.1f} | {cpu / pairs / a_pair:.2f} | {most / 1e6:.0f} |",
        flush=True,
    )
    return cpu / pairs / a_pair, 1e9 * a_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--index", type=int, default=100_000)
    parser.add_argument("--non_landmarks", type=int, default=2_000)
    args = parser.parse_args()
    q, i = args.queries, args.index
    runs = [("retrieval", q // 4, i, 0)]
    runs += [("retrieval", q, count, 0) for count in (i // 4, i // 2, i)]
    runs += [("recognition", q, i, 0), ("recognition", q, i, args.non_landmarks)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_set(folder / f"n{args.non_landmarks}", "c", args.non_landmarks, 0)
        for count in sorted({run[1] for run in runs}):
            make_set(folder / f"q{count}", "a", count, 1)
        for count in sorted({run[2] for run in runs}):
            make_set(folder / f"i{count}", "b", count, 2)
        ids = descriptors.read(folder / f"i{i}").ids
        lines = (f"{id_[6:]},,{row % (1 + i // 20)}\n" for row, id_ in enumerate(ids))
        (folder / "train.csv").write_text("id,url,landmark_id\n" + "".join(lines))
        print("| task | queries x index | s | CPU ns per pair | of the product | ratio | peak MB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        found = [run(folder, *arguments) for arguments in runs]
    retrieval = [n for n, arguments in enumerate(runs) if arguments[0] == "retrieval"]
    inverse, ratios = [1 / runs[n][2] for n in retrieval], [found[n][0] for n in retrieval]
    slope, limit = np.polyfit(inverse, ratios, 1)
    ratio, quickest = limit + slope / FULL_INDEX, min(a_pair for _, a_pair in found)
    hours = ratio * quickest * FULL_QUERIES * FULL_INDEX / 3.6e12
    print(
        f"\nratio = {limit:.2f} + {slope:,.0f} / index photos; {FULL_QUERIES:,} x {FULL_INDEX:,}: "
        f"{ratio:.2f} times the product, at {quickest:.1f} ns per pair {hours:.2f} CPU hours"
    )


if __name__ == "__main__":
    main()
