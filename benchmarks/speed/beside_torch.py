"""Our network beside the same one in plain PyTorch: a table in benchmarks/README.md.

    pip install torch
    python benchmarks/speed/beside_torch.py
    python benchmarks/speed/beside_torch.py --only=r50_one,training

`torch_side.py` is DOLG in PyTorch, and draws weights. `dolg convert` takes them over, `dolg export`
makes a SavedModel of them, and our side runs it in the C++ loader. Nothing is timed before both
sides have given the same: descriptors to 1e-4, the losses of three training steps to 1e-3.

Each side has a process of its own, with as many threads as there are cores. Both do a round in
turn, so that a busy machine slows both. Extraction is the whole command, from the start of Python
to the files. Times are of the clock, medians of the rounds, for all photos of a row; the ratio is
told of the CPU time of all threads, too. Memory is the peak of the process (of the largest one, in
extraction), with Python and its libraries.

PyTorch runs channels-last, in inference mode with batch norms folded into the convolutions; it
trains with its fused SGD. "Compiled" is `torch.compile` with frozen weights, which needs a C++
compiler and a minute for each size of photos.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from stages import README, check_processor, measure_processor, read_block, write_block
from torch_works import WORKS, Files, command, quick

from dolg_tf.retrieval import descriptors

BLOCK = "beside_torch"
SIDES = ("PyTorch", "ours")
HEADER = (
    "| work | PyTorch, s | ours, s | ours over PyTorch | of CPU time | PyTorch, GB | ours, GB | "
    "command |"
)
_TOLERANCE = {"inference": 1e-4, "training": 1e-3, "extraction": 1e-4}
_PAUSE = 0.3  # seconds until the threads of the other side sleep


# --- both sides in turn -------------------------------------------------------------------------


class Server:
    """A side of a work that does a round when it is told to.

    Attributes:
      answer: what its first calls gave.

    Raises:
      RuntimeError: when its process fails; its log is on the terminal.
    """

    def __init__(self, words: list[str]):
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer = self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            self._end()
            words = " ".join(self._process.args)
            raise RuntimeError(f"{words}: exit code {self._process.returncode}")
        return json.loads(line)

    def round(self) -> list[float]:
        """Returns seconds of the clock and of the CPU."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> int:
        """Ends the process and returns the peak of its memory, in bytes."""
        self._process.stdin.close()
        memory = self._read()
        self._end()
        return memory

    def _end(self) -> None:
        with self._process:  # closes its pipes and waits for it
            pass


def measure_calls(name: str, files: Files, rounds: int, small: bool) -> dict:
    """Returns the difference of the answers and, by side, `seconds` and `memory` in bytes.

    Seconds are (rounds, 2), of the clock and of the CPU.
    """
    servers = {side: Server(command(name, side, files.folder, small)) for side in SIDES}
    error = difference(*(np.array(server.answer) for server in servers.values()))
    if files.work.kind == "training":
        error /= np.abs(servers["PyTorch"].answer).max()
    seconds = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, server in servers.items():
            time.sleep(_PAUSE)
            seconds[side].append(server.round())
    memory = {side: server.close() for side, server in servers.items()}
    return {"error": error, "seconds": seconds, "memory": memory}


def measure_extraction(name: str, files: Files, rounds: int, small: bool) -> dict:
    """Returns the same of the two commands that extract a folder."""
    ours = files.folder / "set"
    scales = ",".join(map(str, files.work.scales))
    words = [f"--images={files.photos}", f"--saved_model={files.saved_model}"]
    words += [f"--scales={scales}", f"--output={ours}"]
    commands = {
        "PyTorch": command(name, "extraction", files.folder, small),
        "ours": [*_DOLG, "extract", *words],
    }
    seconds, memory = {side: [] for side in SIDES}, dict.fromkeys(SIDES, 0)
    for _ in range(rounds):
        shutil.rmtree(ours, ignore_errors=True)
        for side, words in commands.items():
            *spent, peak = timed(words)
            seconds[side].append(spent)
            memory[side] = max(memory[side], peak)
    rows = np.asarray(descriptors.read(ours).descriptors)
    error = difference(np.load(files.extracted), rows)
    return {"error": error, "seconds": seconds, "memory": memory}


_DOLG = (sys.executable, "-m", "dolg_tf")


def timed(words: list[str]) -> tuple[float, float, int]:
    """Runs a command; returns seconds of clock and CPU, and peak bytes of its largest process.

    Raises:
      RuntimeError: when it fails, with its log.
    """
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process.stderr:
        log = process.stderr.read()
    _, state, used = os.wait4(process.pid, 0)
    clock = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(state)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {log.decode(errors='replace')}")
    return clock, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Returns the largest difference of two answers; infinite if their shapes differ."""
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf


def prepare(name: str, files: Files, small: bool) -> None:
    """Writes what a work needs and no work before has written."""
    export = [f"--model_dir={files.model}", f"--output={files.saved_model}"]
    steps = {
        files.weights: command(name, "weights", files.folder, small),
        files.model: [*_DOLG, "convert", f"--input={files.weights}", f"--output={files.model}"],
        files.saved_model: [*_DOLG, "export", *export],
        files.photos: command(name, "photos", files.folder, small),
    }
    for path, words in steps.items():
        if not path.exists():
            timed(words)


def measure(name: str, folder: pathlib.Path, rounds: int, small: bool) -> dict:
    """Measures a work.

    Raises:
      RuntimeError: when the sides do not compute the same.
    """
    files = Files(folder, quick(WORKS[name]) if small else WORKS[name])
    prepare(name, files, small)
    do = measure_extraction if files.work.kind == "extraction" else measure_calls
    found = do(name, files, rounds, small)
    if not found["error"] <= _TOLERANCE[files.work.kind]:
        raise RuntimeError(
            f"{name}: the sides differ by {found['error']:.2g}, by more than "
            f"{_TOLERANCE[files.work.kind]:g}"
        )
    return found


# --- the table ----------------------------------------------------------------------------------


def command_of(name: str) -> str:
    return f"`python benchmarks/speed/beside_torch.py --only={name}`"


def table_row(name: str, found: dict) -> str:
    """Returns a row of the table; `found` is what `measure` returns."""
    theirs, ours = (np.median(found["seconds"][side], axis=0) for side in SIDES)
    cells = [WORKS[name].title, f"{theirs[0]:.3g}", f"{ours[0]:.3g}"]
    cells += [f"{ratio:.2f}" for ratio in ours / theirs]
    cells += [f"{found['memory'][side] / 1e9:.2f}" for side in SIDES]
    return f"| {' | '.join(cells)} | {command_of(name)} |"


def kept_rows(lines: list[str]) -> dict[str, str]:
    """Returns {name: row} of the works in a table."""
    return {
        name: line for name in WORKS for line in lines if line.endswith(f"| {command_of(name)} |")
    }


def table(processor: str, load: float, rows: dict[str, str]) -> list[str]:
    """Returns the lines of the block."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "tensorflow")]
    return [
        f"{processor}; {', '.join(versions)}. Load of the machine before the last run: {load:.1f}.",
        "",
        HEADER,
        f"{'| --- ' * 8}|",
        *(rows[name] for name in WORKS if name in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help=f"works of {','.join(WORKS)}; keep other rows")
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--output", type=pathlib.Path, default=README, help="file with the table")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, as a trial")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch, the other side of this comparison, is missing: pip install torch")
    names = arguments.only.split(",") if arguments.only else [*WORKS]
    if unknown := set(names) - set(WORKS):
        name = sorted(unknown)[0]
        parser.error(f"--only: {name!r} is unknown; choose from {','.join(WORKS)}")
    load, (processor, _) = os.getloadavg()[0], measure_processor()
    try:
        before = read_block(arguments.output, BLOCK)
        if arguments.only:
            check_processor(before, processor)
    except ValueError as error:
        parser.error(str(error))
    rows = kept_rows(before) if arguments.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, 1):
            print(f"[{number}/{len(names)}] {name} ... ", end="", flush=True)
            found = measure(name, pathlib.Path(folder), arguments.rounds, arguments.quick)
            rows[name] = table_row(name, found)
            print(f"the sides differ by {found['error']:.1g}\n{rows[name]}", flush=True)
    write_block(arguments.output, BLOCK, table(processor, load, rows))
    print(f"{arguments.output}: written")


if __name__ == "__main__":
    main()
