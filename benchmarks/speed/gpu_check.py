"""What one GPU makes of DOLG-R50, in under eight minutes: a table in benchmarks/README.md.

    make gpu-check
    python benchmarks/speed/gpu_check.py --quick --output=page.md

On TensorFlow if it sees a GPU (`pip install 'tensorflow[and-cuda]'`), else on JAX (`pip install
'jax[cuda12]'`). Per precision, in a process of its own: the distance from descriptors that the
authors' code computed, inference, and a complete training step: forward, ArcFace over 81,313
classes, backward, momentum and weight decay. Multiply-adds are those of the network and the head,
including those with the zeros of padding, and three times as many in training; the peak is the
faster of a matrix product and a 3x3 convolution in the same precision, timed in turn with the work.
Times are of one step, best and median of five rounds. --quick tries all this on the CPU, with the
smallest sizes.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from stages import README, read_block, write_block

BLOCK = "gpu"
PRECISIONS = ("float32", "bfloat16")
ERROR, COSINE = 1e-4, 0.999  # float32: largest error; bfloat16: least cosine
_LIMIT = 470  # seconds
_SCRIPT = pathlib.Path(__file__).with_name("gpu_works.py")
# Each prints its version and the GPU's name, which may be empty. They run in processes of their
# own: the backend must be known before Keras is imported.
_SEES = {
    "tensorflow": """
import tensorflow as tf
gpus = tf.config.list_physical_devices("GPU")
cuda = tf.sysconfig.get_build_info().get("cuda_version", "no CUDA")
print(f"TensorFlow {tf.__version__} (CUDA {cuda})".replace("CUDA no", "no"))
print(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "")
""",
    "jax": """
import jax
gpu = jax.default_backend() == "gpu"
print(f"JAX {jax.__version__}")
print(jax.devices()[0].device_kind if gpu else "")
""",
}
_COUNT = """
import sys
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.summary import count_multiply_adds
from dolg_tf.modeling.config import DolgConfig
counted, unknown = count_multiply_adds(build_dolg(DolgConfig()), int(sys.argv[1]))
assert not unknown, unknown
print(sum(counted.values()))
"""


# --- what is there ------------------------------------------------------------------------------


def start(code: str, *words, **environment) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, **environment}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def look() -> dict[str, tuple[str, str]]:
    """Returns {backend: (version, name of its GPU or "")} of those that are installed."""
    started = {backend: start(code) for backend, code in _SEES.items()}
    said = {backend: process.communicate()[0].splitlines() for backend, process in started.items()}
    return {backend: (lines[0], lines[1]) for backend, lines in said.items() if len(lines) > 1}


def choose(seen: dict[str, tuple[str, str]]) -> str:
    """Returns the backend that is measured.

    Raises:
      ValueError: when none sees a GPU.
    """
    for backend, (_, gpu) in seen.items():
        if gpu:
            return backend
    without = [f"{version} sees none" for version, _ in seen.values()]
    if "jax" not in seen:
        without.append("JAX is not installed")
    raise ValueError(
        f"no GPU: {', '.join(without)}; pip install 'tensorflow[and-cuda]' or 'jax[cuda12]', or "
        "try the script with --quick"
    )


def driver() -> tuple[str, int]:
    """Returns the driver's version and the GPU's memory in MB; "" and 0 if nothing tells."""
    if shutil.which("nvidia-smi") is None:
        return "", 0
    asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run([*asked, "--id=0"], capture_output=True, text=True)
    version, _, memory = done.stdout.strip().partition(", ")
    return version, int(memory.split()[0]) if done.returncode == 0 and memory else 0


def photos_for(megabytes: int) -> int:
    """Returns how many photos of 512 px a float32 step can take: a power of two from 4 to 32."""
    fit = (megabytes / 1000 - 3) / 0.7  # 0.54 GB each (memory.py), and room for work space
    return next((count for count in (32, 16, 8) if count <= fit), 4)


# --- measuring ----------------------------------------------------------------------------------


def measure(
    backend: str, precision: str, sizes: list[str], seconds: float | None
) -> tuple[list, str]:
    """Returns the results of a process, and why there are not more of them; "" if there are all."""
    command = [sys.executable, str(_SCRIPT), precision, *sizes]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        said, why = error.stdout or b"", "the time was over"
    else:
        said, why = done.stdout, ""
        if done.returncode:
            log = done.stderr.decode(errors="replace").strip().splitlines()
            why = (log or [f"exit code {done.returncode}"])[-1]
    return [json.loads(line) for line in said.splitlines() if line.startswith(b"{")], why


# --- the table ----------------------------------------------------------------------------------


def golden_row(found: dict) -> str:
    """Returns a row of the golden numbers."""
    name = found["golden"]
    bar, held = "", True
    if name.endswith("exact products"):
        bar, held = f"error at most {ERROR:g}", found["error"] <= ERROR
    elif name == "bfloat16":
        bar, held = f"cosine at least {COSINE:g}", found["cosine"] >= COSINE
    verdict = {True: "held" if bar else "", False: "**missed**"}[held]
    return f"| {name} | {found['error']:.1e} | {found['cosine']:.6f} | {bar} | {verdict} |"


def rows_of(found: dict, precision: str, batch: int) -> list[str]:
    """Returns the row of a work, and those of the peaks beside it."""
    peak = max(found["peaks"].values())

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    spent = (f"{1e3 * found['best']:.1f}", f"{1e3 * found['median']:.1f}")
    rows = [
        row(
            *(found["work"], precision, str(batch), *spent, f"{batch / found['best']:.1f}"),
            *(f"{2e-12 * found['rate']:.3g}", f"{found['rate'] / peak:.0%}"),
            f"{found['memory'] / 1e9:.2f}",
        )
    ]
    for name, rate in found["peaks"].items():
        rows.append(
            row(name, precision, "", "", "", "", f"{2e-12 * rate:.3g}", f"{rate / peak:.0%}", "")
        )
    return rows


def table(title: str, results: dict[str, list], batch: int, stopped: dict[str, str]) -> list[str]:
    """Returns the lines of the block; `stopped` says why a precision has fewer rows."""
    golden = [r for found in results.values() for r in found if "golden" in r]
    works = {precision: [r for r in found if "work" in r] for precision, found in results.items()}
    rows = [row for p, found in works.items() for r in found for row in rows_of(r, p, batch)]
    return [
        title,
        "",
        "| descriptors of the authors' code | largest error | least cosine | bar | |",
        f"{'| --- ' * 5}|",
        *map(golden_row, golden),
        "",
        "| work | precision | photos | best, ms | median, ms | photos/s | TFLOP/s | of peak | "
        "peak GB |",
        f"{'| --- ' * 9}|",
        *rows,
        *(f"\n{precision}: stopped, {why}" for precision, why in stopped.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, help="photos per step; default: by the GPU's memory")
    parser.add_argument("--output", type=pathlib.Path, default=README, help="file with the table")
    parser.add_argument("--quick", action="store_true", help="on the CPU, as a trial")
    parser.add_argument("--backend", choices=tuple(_SEES), help="for --quick", default="tensorflow")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.quick:
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
    else:  # one GPU
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    try:
        read_block(arguments.output, BLOCK)
        seen = look()
        backend = arguments.backend if arguments.quick else choose(seen)
        if backend not in seen:
            raise ValueError(f"--backend={backend}: it cannot be imported; pip install {backend}")
    except ValueError as error:
        sys.exit(str(error))
    (version, gpu), (driver_version, megabytes) = seen[backend], driver()
    size, batch = (64, 2) if arguments.quick else (512, arguments.batch or photos_for(megabytes))
    told = [gpu or "CPU", *([f"driver {driver_version}"] if driver_version else []), version]
    print(f"{', '.join(told)}: {batch} photos of {size} px", flush=True)
    counting = start(_COUNT, size, KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    macs = int(counting.communicate()[0])
    sizes = [f"--batch={batch}", f"--size={size}", f"--macs={macs}"]
    if arguments.quick:
        sizes += ["--classes=100", "--steps=1", "--side=512"]
    results, stopped = {}, {}
    for precision in PRECISIONS:
        left = None if arguments.quick else max(_LIMIT - (time.monotonic() - began), 1)
        results[precision], why = measure(backend, precision, sizes, left)
        stopped |= {precision: why} if why else {}
    title = f"{', '.join(told)}. DOLG-R50, {size} px, {macs / 1e9:.1f} GMAC per photo."
    lines = table(title, results, batch, stopped)
    write_block(arguments.output, BLOCK, lines)
    print("\n".join([*lines, "", f"{arguments.output}: written"]))
    if stopped or any("missed" in line for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
