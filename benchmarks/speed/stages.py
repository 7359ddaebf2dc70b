"""Every stage of the project beside its floor: a table in benchmarks/README.md.

    python benchmarks/speed/stages.py
    python benchmarks/speed/stages.py --only=records,search

Each stage runs in its own process, which times work and floor in turn, so that a busy machine slows
both. Times are of the clock: best and median of five rounds, after one to warm up. The ratio is of
the best times. Memory is the peak of that process, or of its largest child, while the work was done
for the first time.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from stage_cases import STAGES, Case
from timing import Timer, peak_memory, peak_memory_of_children, restart_peak_memory

from dolg_tf.stage import files

README = pathlib.Path(__file__).parents[1] / "README.md"
HEADER = "| stage | work | best, s | median, s | floor, s | ratio | peak GB | command |"
_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX"}


# --- a stage, in its own process --------------------------------------------------------------


def measure(case: Case) -> dict:
    """Returns a case's entries of the table: work, seconds, bytes."""
    restart_peak_memory()
    memory, prepared = None, peak_memory_of_children()

    def peak() -> int:
        # If the largest child belongs to the preparation, it says nothing about the work.
        children = peak_memory_of_children()
        return max(peak_memory(), children if children > prepared else 0)

    if case.rounds > 1:
        for call in case.calls.values():
            call()
        memory = peak()
        for call, _ in case.floors:
            call()
    timer = Timer()
    for name, call in case.calls.items():
        timer.add(name, call)
    for number, (call, _) in enumerate(case.floors):
        timer.add(number, call)
    timer.run(case.rounds, warm_up=False)
    slowest = max(case.calls, key=lambda name: timer.least(name)[0])
    floors = [factor * timer.least(number)[0] for number, (_, factor) in enumerate(case.floors)]
    return {
        "work": f"{case.work}; slowest `{slowest}`" if slowest else case.work,
        "best": timer.least(slowest)[0],
        "median": timer.median(slowest),
        "floor": min(floors),
        "memory": memory or peak(),
    }


def measure_processor() -> tuple[str, float]:
    """Returns cores and vector instructions, in words, and the float32 rate in GFLOP/s."""
    matrix = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    timer = Timer()
    timer.add("product", lambda: matrix @ matrix)
    timer.run(5)
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    cores = sum(line.startswith("processor") for line in lines)
    names = [name for flag, name in _FLAGS.items() if flag in flags]
    rate = 2 * 2048**3 / timer.least("product")[0] / 1e9
    return ", ".join([f"{cores} cores", *names]), rate


def run_alone(name: str, quick: bool) -> dict | None:
    """Returns the result of `--stage=name`; None, and prints the end of its log, if it fails."""
    command = [sys.executable, __file__, f"--stage={name}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-20:]), file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


# --- the table ----------------------------------------------------------------------------------


def marks(block: str) -> tuple[str, str]:
    return f"<!-- {block}: begin -->", f"<!-- {block}: end -->"


def read_block(path: pathlib.Path, block: str) -> list[str]:
    """Returns the lines between the two comments of a block.

    Raises:
      ValueError: when the file does not have both, once each and in this order.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = marks(block)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"{path} must be a file with the lines {begin!r} and {end!r}, once each")
    return text.split(begin)[1].split(end)[0].strip().splitlines()


def write_block(path: pathlib.Path, block: str, lines: list[str]) -> None:
    """Replaces the lines between the two comments of a block."""
    read_block(path, block)
    begin, end = marks(block)
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    files.write_text(path, "\n".join([f"{before}{begin}", *lines, f"{end}{after}"]))


def command_of(name: str) -> str:
    return f"`make bench ONLY={name}`"


def table_row(name: str, found: dict | None) -> str:
    """Returns a row of the table; `found` is None when the stage failed."""
    title = STAGES[name].title
    if found is None:
        return f"| {title} | **failed** | | | | | | {command_of(name)} |"
    cells = [
        title,
        found["work"],
        f"{found['best']:.3g}",
        f"{found['median']:.3g}",
        f"{found['floor']:.3g}",
        f"{found['best'] / found['floor']:.2f}",
        f"{found['memory'] / 1e9:.2f}",
        command_of(name),
    ]
    return f"| {' | '.join(cells)} |"


def kept_rows(lines: list[str]) -> dict[str, str]:
    """Returns {name: row} of the stages in a table."""
    return {
        name: line for name in STAGES for line in lines if line.endswith(f"| {command_of(name)} |")
    }


def table(processor: str, rate: float, rows: dict[str, str]) -> list[str]:
    """Returns the lines of the block: processor, rows in the order of stages, floors in words."""
    names = [name for name in STAGES if name in rows]
    return [
        f"{processor}; {rate:.0f} GFLOP/s in a float32 matrix product.",
        "",
        HEADER,
        f"{'| --- ' * 8}|",
        *(rows[name] for name in names),
        "",
        "Floors:",
        "",
        *(f"- {STAGES[name].title}: {STAGES[name].floor}." for name in names),
    ]


def check_processor(lines: list[str], processor: str) -> None:
    """Checks that the rows to keep were measured on this processor.

    Raises:
      ValueError: when they were measured on another.
    """
    if lines and not lines[0].startswith(f"{processor}; "):
        raise ValueError(
            f"the rows that --only would keep were measured on another processor ({lines[0]}), "
            f"this one has {processor}; run all stages"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help=f"stages of {','.join(STAGES)}; keep other rows")
    parser.add_argument("--output", type=pathlib.Path, default=README, help="file with the table")
    parser.add_argument(
        "--quick", action="store_true", help="smallest sizes and one round, as a trial"
    )
    parser.add_argument("--stage", default="", help="measure one in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.stage:
        with tempfile.TemporaryDirectory() as folder:
            case = STAGES[arguments.stage].prepare(pathlib.Path(folder), arguments.quick)
            if arguments.quick:
                case = dataclasses.replace(case, rounds=1)
            print(json.dumps(measure(case)))
        return
    names = arguments.only.split(",") if arguments.only else [*STAGES]
    if unknown := set(names) - set(STAGES):
        name = sorted(unknown)[0]
        parser.error(f"--only: {name!r} is unknown; choose from {','.join(STAGES)}")
    (processor, rate), failed = measure_processor(), []
    try:
        before = read_block(arguments.output, "stages")
        if arguments.only:
            check_processor(before, processor)
    except ValueError as error:
        parser.error(str(error))
    rows = kept_rows(before) if arguments.only else {}
    for number, name in enumerate(names, 1):
        start = time.monotonic()
        print(f"[{number}/{len(names)}] {STAGES[name].title} ... ", end="", flush=True)
        result = run_alone(name, arguments.quick)
        failed += [name] if result is None else []
        rows[name] = table_row(name, result)
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        print(rows[name], flush=True)
    write_block(arguments.output, "stages", table(processor, rate, rows))
    print(f"{arguments.output}: written")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
