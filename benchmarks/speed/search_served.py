"""An index inside a SavedModel: a search beside the bare matrix product, and memory.

    python benchmarks/speed/search_served.py --work=DIR
    python benchmarks/speed/search_served.py --work=DIR --rows 1000000 --precision float16

A small random network and a made-up index of unit rows of 512 numbers, exported by `dolg export
--mode=search`. Its calls, of one photo of 32 x 32 pixels and of 32 of them, are timed in turn with
those of the same network without an index, whose time is subtracted, and with the product of as
many queries and the rows in NumPy. Medians of clock times; peak memory of each process, and what of
it the rows are.
"""

import argparse
import io
import json
import pathlib
import resource
import subprocess
import sys

import numpy as np
from PIL import Image
from timing import Timer

from dolg_tf.stage import files

WIDTH, PHOTOS, SIDE = 512, (1, 32), 32


def prepare(work: pathlib.Path) -> None:
    """Makes the network, its export for extraction, and the descriptor set of two photos."""
    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.modeling.model_dir import save_dolg

    config = DolgConfig(backbone="resnet17_small", dilations=(1, 2), descriptor_size=WIDTH)
    save_dolg(build_dolg(config, seed=0), config, work / "network", {"source": "random weights"})
    (work / "photos").mkdir()
    for number, data in enumerate(encoded(2)):
        (work / "photos" / f"{number}.png").write_bytes(data)
    run("export", f"--model_dir={work}/network", "--scales=1", f"--output={work}/plain")
    run(
        *("extract", f"--saved_model={work}/plain", f"--images={work}/photos"),
        f"--output={work}/described",
    )


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dolg_tf", *words], check=True, capture_output=True)


def encoded(count: int) -> list[bytes]:
    """Returns photos of noise as PNGs."""
    found, rng = [], np.random.default_rng(0)
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


def unit_rows(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((count, WIDTH), np.float32)
    return np.divide(rows, np.linalg.norm(rows, axis=1, keepdims=True), out=rows)


def build(work: pathlib.Path, count: int) -> pathlib.Path:
    """Writes the index of made-up rows, described as the two photos were."""
    from dolg_tf.retrieval import descriptors
    from dolg_tf.retrieval.index import directory

    path = work / f"index{count}"
    if not path.exists():
        meta = directory.flat_meta(descriptors.read(work / "described").meta, WIDTH, None)
        rows, ids = unit_rows(count), [f"{number:08d}" for number in range(count)]
        directory.write(path, ids, meta, lambda file: directory.write_flat(rows, file))
    return path


def serve(model: str, plain: str, count: int) -> None:
    """In its own process: times the calls, and prints them with the peak memory."""
    from dolg_tf.runtime.session import CppSession

    found, timer = {}, Timer()
    with CppSession(model) as session, CppSession(plain) as other:
        for photos in PHOTOS:
            inputs = {"image_bytes": np.array(encoded(photos), object)}
            timer.add(f"model {photos}", session.run, "serving_default", inputs)
            timer.add(f"plain {photos}", other.run, "serving_default", inputs)
        timer.run(1)
        found["peak"] = peak()
        rows = unit_rows(count)
        for photos in PHOTOS:
            timer.add(f"product {photos}", np.matmul, rows[:photos], rows.T)
        # NumPy's threads go on waiting for work for a while.
        timer.run(7, pause=0.3)
    found |= {name: timer.median(name) for name in timer.calls}
    print(json.dumps(found))


def export(options: dict) -> None:
    """In its own process: exports, and prints its peak memory."""
    from dolg_tf.pipelines import export
    from dolg_tf.serving.config import ExportConfig

    export.export(ExportConfig(**options))
    print(peak())


def peak() -> float:
    """Returns the peak memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(work: pathlib.Path, count: int, precision: str) -> None:
    index, model = build(work, count), work / f"served{count}-{precision}"
    if not model.exists():
        options = {
            **{"mode": "search", "model_dir": str(work / "network"), "index": str(index)},
            **{"index_precision": precision, "output": str(model)},
        }
        command = [sys.executable, __file__, "--export", json.dumps(options)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        files.write_json(work / f"export{count}-{precision}.json", float(done.stdout))
    exporting = files.read_json(work / f"export{count}-{precision}.json")
    command = [sys.executable, __file__, "--serve", str(model), str(work / "plain"), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    size = count * WIDTH * (2 if precision == "float16" else 4) / 1e9
    for photos in PHOTOS:
        search = found[f"model {photos}"] - found[f"plain {photos}"]
        product = found[f"product {photos}"]
        print(
            f"| {count:,} | {precision} | {photos} | {1000 * search:.1f} | {1000 * product:.1f} | "
            f"{search / product:.2f} | {photos / found[f'model {photos}']:.1f} | {size:.2f} | "
            f"{found['peak']:.2f} | {exporting:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", help="folder for the models and indexes")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--precision", default="float32", choices=("float32", "float16"))
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--export", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.export)
        return
    if arguments.serve:
        model, plain, count = arguments.serve
        serve(model, plain, int(count))
        return
    work = pathlib.Path(arguments.work)
    if not (work / "described").exists():
        work.mkdir(parents=True, exist_ok=True)
        prepare(work)
    print(
        "| rows | precision | photos | search ms | product ms | ratio | photos/s | rows GB |",
        end="",
    )
    print(" server peak GB | export peak GB |")
    print("| --- " * 10 + "|")
    for count in arguments.rows:
        measure(work, count, arguments.precision)


if __name__ == "__main__":
    main()
