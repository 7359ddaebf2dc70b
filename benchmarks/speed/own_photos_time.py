"""`dolg search` on photos of a phone's size: time to the first answer, memory, the next time.

    python benchmarks/speed/own_photos_time.py [--photos=500] [--more=250]

Photos are 4,032 x 3,024 pixels, procedural scenes with a camera's noise, about 4 MB each. A few are
drawn; the others are the same with other bytes behind their end, so that each is read, decoded and
described. Each run is the command itself, in a new process, with all packages installed:

1. the first time, with the ready network made before (its own time is printed);
2. again, nothing changed;
3. with `--more` further photos: what each takes, and by that slope the hours of 100,000.

Memory is the peak of the command, without the child that makes the network (`VmHWM`).
"""

import argparse
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from dolg_tf.data.procedural.write import ToyConfig, write_toy
from dolg_tf.serving import ready
from dolg_tf.stage.progress import format_seconds

WIDTH, HEIGHT = 4032, 3024  # pixels
DRAWN = 12
MANY = 100_000
CODE = """
import sys
from dolg_tf import cli
try:
    cli.main(sys.argv[1:])
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", peak.split()[1], file=sys.stderr)
"""


def draw(folder: pathlib.Path) -> list[bytes]:
    """Returns a few encoded photos."""
    toy = ToyConfig(
        output=str(folder / "toy"),
        landmarks=DRAWN,
        unseen_landmarks=1,
        photos_per_landmark=1,
        index_per_landmark=3,
        size=512,
    )
    write_toy(toy)
    found, rng = [], np.random.default_rng(0)
    for path in sorted((folder / "toy" / "train").rglob("*.jpg"))[:DRAWN]:
        large = Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 5, (HEIGHT, WIDTH, 1)).astype(np.float32)
        levels = np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)
        file = folder / "large.jpg"
        Image.fromarray(levels).save(file, quality=92)
        found.append(file.read_bytes())
    return found


def add_photos(folder: pathlib.Path, drawn: list[bytes], numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        data = drawn[number % len(drawn)] + number.to_bytes(4)
        (folder / f"IMG_{number:05d}.jpg").write_bytes(data)


def run(photos: pathlib.Path, kept: pathlib.Path) -> tuple[float, float, float]:
    """Runs the command; returns seconds, those of the processors, and peak memory in bytes."""
    words = ["search", str(photos), f"--kept={kept}", f"--query={photos / 'IMG_00000.jpg'}"]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        sys.exit(done.stderr)
    peak = re.search(r"^peak (\d+)$", done.stderr, re.MULTILINE)
    return seconds, worked, 1024 * int(peak[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--more", type=int, default=250)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        drawn = draw(folder)
        photos, kept = folder / "photos", folder / "kept"
        add_photos(photos, drawn, range(arguments.photos))
        start = time.monotonic()
        ready.saved_model("efficientnet_lite0")
        made = time.monotonic() - start
        first = run(photos, kept)
        again = run(photos, kept)
        total = arguments.photos + arguments.more
        add_photos(photos, drawn, range(arguments.photos, total))
        more = run(photos, kept)
    each = [(more[i] - again[i]) / arguments.more for i in (0, 1)]
    size = np.mean([len(data) for data in drawn]) / 1e6
    print(f"{arguments.photos} photos of 12 MP, {size:.1f} MB each, {os.cpu_count()} cores")
    print("| what | time | CPU time | memory GB |")
    print("| --- | --- | --- | --- |")
    print(f"| the network, once | {format_seconds(made)} | | |")
    rows = {"first answer": first, "again, nothing new": again}
    rows[f"{arguments.more} new photos"] = more
    for name, (seconds, worked, peak) in rows.items():
        times = f"{format_seconds(seconds)} | {format_seconds(worked)}"
        print(f"| {name} | {times} | {peak / 1e9:.2f} |")
    words = f"{MANY:,} photos, by {each[0]:.3f} s each, {each[1]:.3f} s of a processor"
    print(f"| {words} | {' | '.join(format_seconds(MANY * one) for one in each)} | |")


if __name__ == "__main__":
    main()
