"""Peak memory of a training step against batch and side, with and without --recompute.

    python benchmarks/speed/memory.py [--precisions float32 bfloat16]

DOLG-R50 as in configs/r50.flags, 81,313 classes, on the CPU. One process for each precision, with
and without --recompute, traces a step for all shapes and runs it once per cell, PHOTOSxSIDE.
Malloc's settings take large tensors from the system and give them back at once. The growth of the
process from before a step to its peak (VmHWM, reset before) is therefore what tensors took at the
peak; variables and the optimizer's slots are added to it. A line, peak = fixed + bytes per pixel x
pixels of the batch, is fitted to the cells and predicts other sides. Its distance from the cells,
and from a cell that was not fitted, is printed below the table. A small batch needs more than the
line predicts: the update of the weights, after the maps are freed, has a peak of its own. bfloat16,
which TensorFlow's own kernels emulate, takes three times as long as float32.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from timing import peak_memory, restart_peak_memory, status

GPU = 16e9  # bytes; a GPU of 16 GiB has 1.2e9 more, for its context and cuDNN
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # it does not give memory back
}


def as_cell(text: str) -> tuple[int, int]:
    photos, side = map(int, text.split("x"))
    return photos, side


# --- in its own process -------------------------------------------------------------------


def measure(precision: str, recompute: bool, cells: list[tuple[int, int]]) -> list:
    """Returns peak bytes of tensors and CPU seconds of a step, for each cell."""
    import numpy as np
    import tensorflow as tf

    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.training.config import TrainingConfig
    from dolg_tf.training.distribution import make_strategy
    from dolg_tf.training.trainer import Trainer

    training = TrainingConfig(
        logdir="", batch_size=cells[0][0], precision=precision, recompute=recompute
    )
    trainer = Trainer(DolgConfig(), training, 81313, 1000, make_strategy())
    specs = [
        tf.TensorSpec((None, None, None, 3)),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,)),
    ]
    step = trainer._update_step.get_concrete_function(tuple(specs), tf.TensorSpec(()))

    def take(photos: int, side: int) -> tuple[int, float]:
        rng = np.random.default_rng(0)
        images = tf.constant(rng.random((photos, side, side, 3), np.float32))
        labels = tf.constant(rng.integers(0, 81313, photos), tf.int32)
        before, start = status("VmRSS"), time.process_time()
        restart_peak_memory()
        step(images, labels, tf.ones(photos), tf.constant(0.0)).numpy()
        return peak_memory() - before, time.process_time() - start

    take(1, 32)  # optimizes the graph
    variables = [*trainer.network.variables, *trainer.head.variables, *trainer.optimizer.variables]
    kept = sum(4 * int(np.prod(variable.shape)) for variable in variables)
    return [(kept + peak, seconds) for peak, seconds in (take(*cell) for cell in cells)]


# --- the table ----------------------------------------------------------------------------


def fit(cells: list[tuple[int, int]], peaks: list[int]) -> tuple[float, float]:
    """Returns fixed bytes and bytes per pixel."""
    import numpy as np

    pixels = [photos * side**2 for photos, side in cells]
    slope, fixed = np.polyfit(pixels, peaks, 1)
    return float(fixed), float(slope)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", default=["4x256", "16x128", "8x256"])
    parser.add_argument("--check", default="2x512", help="a cell that is not fitted")
    parser.add_argument("--sides", nargs="+", type=int, default=[256, 512, 768])
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # precision, recompute
    arguments = parser.parse_args()
    cells = [as_cell(text) for text in [*arguments.cells, arguments.check]]
    if arguments.one:
        precision, recompute = arguments.one
        print(json.dumps(measure(precision, recompute == "yes", cells)))
        return
    rows, deviations, checks, times = [], [], [], []
    for precision in arguments.precisions:
        for recompute in ("no", "yes"):
            command = [sys.executable, *sys.argv, "--one", precision, recompute]
            environment = {**os.environ, **ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "3"}
            environment.pop("TF_CPU_ALLOCATOR_USE_BFC", None)  # a pool gives nothing back
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            (*peaks, checked), seconds = zip(*json.loads(done.stdout), strict=True)
            times.append(f"{sum(seconds):.0f} s ({precision}, {recompute})")
            fixed, slope = fit(cells[:-1], peaks)
            told = [fixed + slope * photos * side**2 for photos, side in cells]
            deviations += [abs(x / y - 1) for x, y in zip(told, peaks, strict=False)]
            checks.append(f"{checked / 1e9:.2f} GB, predicted {told[-1] / 1e9:.2f}")
            for side in arguments.sides:
                photo = slope * side**2
                batch = int((GPU - fixed) / photo)
                rows.append(
                    (side, precision, recompute, f"{fixed / 1e9:.2f}", f"{photo / 1e9:.3f}", batch)
                )
            print(
                precision,
                recompute,
                [round(peak / 1e9, 3) for peak in (*peaks, checked)],
                file=sys.stderr,
            )
    print(
        "| side | precision | --recompute | fixed GB | GB per photo | photos in 16 GB, estimate |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows):
        print(f"| {' | '.join(map(str, row))} |")
    print(
        f"\nThe lines are within {max(deviations):.1%} of their cells, {' '.join(arguments.cells)};"
    )
    print(f"{arguments.check}, which was not fitted: {'; '.join(checks)}.")
    print(f"CPU time of these steps (precision, --recompute): {', '.join(times)}.")


if __name__ == "__main__":
    main()
