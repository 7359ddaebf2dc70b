"""Cost per photo of the Keras network and its exports, beside the floor that the processor sets.

    python benchmarks/speed/bench_inference.py [--backbones resnet50 resnet101]

The floor is the network's multiply-adds, including those with the zeros of padding, at the rate of
the faster of a 4096-cubed matrix product and a 3x3 convolution, best of five. One process times
everything in turn, so that a busy machine slows all of it. Ratios are of the least times, once of
the clock and once of the CPU time of all threads. Memory and load time are those of a process that
does nothing else.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import inference_runs
import numpy as np
from inference_runs import CANDIDATES, FILES, SCALES
from timing import Timer, best_rates, has_bfloat16, peaks

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import load_network, save_dolg
from dolg_tf.modeling.summary import count_multiply_adds
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.export import export
from dolg_tf.serving.modes import serving
from dolg_tf.serving.saved_model import write_signatures

_COUNTED = 5  # rounds of the floor


# --- the candidates ---------------------------------------------------------------------


def write(backbone: str, folder: pathlib.Path) -> list[str]:
    """Writes the candidates; returns the names of those that can run here."""
    names = ["Keras call", "SavedModel, Python", "SavedModel, C++ loader"]
    config = DolgConfig(backbone=backbone)
    network = build_dolg(config, seed=0)
    save_dolg(network, config, folder / "model", {"source": "random"})
    options = ExportConfig(model_dir="", output="")
    write_signatures(serving.functions(network, options, None), folder / "saved_model")
    if has_bfloat16():
        half = build_dolg(config, dtype="mixed_bfloat16")
        half.set_weights(network.get_weights())
        write_signatures(serving.functions(half, options, None), folder / "bfloat16")
        names += ["bfloat16, Python", "bfloat16, C++ loader"]
    else:
        print("bfloat16: skipped, neither this processor nor a GPU has it", flush=True)
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "tf2onnx")):
        paths = {"model_dir": str(folder / "model"), "output": str(folder / "model.onnx")}
        export(ExportConfig(**paths, mode="onnx"))
        names.append("ONNX")
    else:
        print("ONNX: skipped, pip install 'dolg_tf[onnx]'", flush=True)
    return names


# --- time -----------------------------------------------------------------------------------


def measure(backbone: str, folder: pathlib.Path, names: list[str], arguments) -> None:
    network = load_network(str(folder / "model")).network
    sides = [round(arguments.size * scale) for scale in SCALES]
    products = {side: sum(count_multiply_adds(network, side)[0].values()) for side in sides}
    work = {1: products[arguments.size], len(SCALES): sum(products.values())}
    del network
    calls = {name: CANDIDATES[name](folder) for name in names}
    rng = np.random.default_rng(0)
    timer = Timer()
    limits = peaks()
    for name, (call, _) in limits.items():
        timer.add(name, call)
    cases = {1: np.ones(1, np.float32), len(SCALES): np.asarray(SCALES, np.float32)}
    for batch in arguments.batches:
        photos = rng.integers(0, 256, (batch, arguments.size, arguments.size, 3), dtype=np.uint8)
        for count, scales in cases.items():
            for name, call in calls.items():
                timer.add((name, batch, count), call, photos, scales)
    timer.run(max(arguments.repeats, _COUNTED))
    rates = best_rates(timer, limits)
    print(
        f"\n{backbone}, {arguments.size} px: {2e-9 * work[1]:.1f} GFLOP at one scale, "
        f"{2e-9 * work[len(SCALES)]:.1f} at {len(SCALES)}; peak {2e-9 * rates[0]:.0f} GFLOP/s of "
        f"the clock, {2e-9 * rates[1]:.0f} of CPU time"
    )
    print(
        "\n| per photo | batch | scales | median ms | least ms | floor ms | ratio | of CPU time |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, batch, count in [key for key in timer.calls if isinstance(key, tuple)]:
        least, floor = timer.least((name, batch, count)) / batch, work[count] / rates
        median = timer.median((name, batch, count)) / batch
        ratio = least / floor
        print(
            f"| {name} | {batch} | {count} | {1e3 * median:.0f} | {1e3 * least[0]:.0f} | "
            f"{1e3 * floor[0]:.0f} | {ratio[0]:.2f} | {ratio[1]:.2f} |",
            flush=True,
        )


# --- memory, load time, size: a process each ------------------------------------------------


def in_process(*arguments) -> dict:
    command = [sys.executable, inference_runs.__file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_footprints(folder: pathlib.Path, names: list[str], size: int) -> None:
    print(
        "\n| process | on disk MB | load s | first call s | peak MB at 1 scale | "
        f"at {len(SCALES)} | at {len(SCALES)} of {2 * size} px |\n" + "| --- " * 7 + "|"
    )
    for name in names:
        file = folder / FILES.get(name, FILES.get(name.split(",")[0], "saved_model"))
        parts = [part for part in (file, *file.rglob("*")) if part.is_file()]
        disk = sum(part.stat().st_size for part in parts) / 1e6
        one = in_process(name, folder, size, 1)
        five = in_process(name, folder, size, len(SCALES))
        large = in_process(name, folder, 2 * size, len(SCALES))
        print(
            f"| {name} | {disk:.0f} | {one['load']:.1f} | {one['first']:.1f} | {one['peak']} | "
            f"{five['peak']} | {large['peak']} |",
            flush=True,
        )
    print(f"\nOf each peak, {one['before']} MB are Python's and NumPy's; loads include imports.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "resnet101"])
    parser.add_argument("--size", type=int, default=512, help="side of the photos, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="photos per call")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, at least 5")
    parser.add_argument("--no_footprints", action="store_true", help="time only")
    arguments = parser.parse_args()
    for backbone in arguments.backbones:
        with tempfile.TemporaryDirectory() as folder:
            names = write(backbone, pathlib.Path(folder))
            measure(backbone, pathlib.Path(folder), names, arguments)
            if not arguments.no_footprints:
                print_footprints(pathlib.Path(folder), names, arguments.size)


if __name__ == "__main__":
    main()
