"""A copy of an index in Milvus Lite: rates of sending and of searching, beside exact search.

    python benchmarks/speed/engines.py --work=DIR

Unit rows of 512 numbers, made up, which no approximation finds easily; Milvus Lite is the embedded
form of Milvus, in this process and on one machine, so these figures are not those of a cluster.
Clock times; those of a query are medians of single queries, the database open.
"""

import argparse
import pathlib
import shutil
import time

import numpy as np
from search_served import build, prepare
from timing import Timer

from dolg_tf.retrieval.index import engines
from dolg_tf.retrieval.index.directory import Index

K, QUERIES = 10, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", required=True, help="folder for the indexes and databases")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    arguments = parser.parse_args()
    work = pathlib.Path(arguments.work)
    if not (work / "described").exists():
        work.mkdir(parents=True, exist_ok=True)
        prepare(work)
    print("| rows | rows sent per s | query ms | exact search ms | recall at 10 |")
    print("| --- " * 5 + "|")
    for count in arguments.rows:
        path, file = build(work, count), work / f"{count}.db"
        shutil.rmtree(file, ignore_errors=True)
        settings = {"engine": "milvus", "uri": str(file), "index": str(path)}
        start = time.perf_counter()
        engines.push(engines.PushConfig(**settings))
        rate = count / (time.perf_counter() - start)
        print(f"| {count:,} | {rate:,.0f} | {' | '.join(searched(settings, path))} |", flush=True)


def searched(settings: dict, path: pathlib.Path) -> list[str]:
    """Returns the cells of a row of the table that tell of searching."""
    index, timer = Index.open(path), Timer()
    queries = np.asarray(index.descriptors[:QUERIES])
    queries = queries + 0.02 * np.random.default_rng(1).standard_normal(queries.shape)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    with engines.open_engine(engines.PushConfig(**settings)) as engine:
        for number in range(QUERIES):
            timer.add(f"engine {number}", engine.search, queries[number : number + 1], K)
            timer.add(f"exact {number}", index.search, queries[number : number + 1], K)
        timer.run(1)
        found = engine.search(queries, K)
    times = [
        np.median([timer.median(f"{name} {number}") for number in range(QUERIES)])
        for name in ("engine", "exact")
    ]
    exact = index.search(queries, K).rows
    same = [
        len({name for name, _, _ in one} & {index.ids[row] for row in rows})
        for one, rows in zip(found, exact, strict=True)
    ]
    return [
        *(f"{1000 * seconds:.1f}" for seconds in times),
        f"{100 * sum(same) / exact.size:.1f} %",
    ]


if __name__ == "__main__":
    main()
