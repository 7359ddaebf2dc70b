"""Concurrent requests to an exported model, for minutes.

    python benchmarks/speed/serving_soak.py --saved_model=models/dolg/1

Photos of many sizes and formats, some of them damaged, come in batches of one to three in random
order. Fails unless every answer equals the first one for the same photo, and memory grows by less
than 1 % over the second half of the time.
"""

import concurrent.futures
import dataclasses
import io
import logging
import os
import sys
import threading
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import timing
from PIL import Image

from dolg_tf.stage import command
from dolg_tf.stage import config as configs

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
GROWTH = 0.01
SAMPLES = 1000  # of the memory, over the whole time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """Duration and load."""

    saved_model: str = configs.option("SavedModel of mode serving")
    seconds: float = configs.option("duration", 600.0, unit="s")
    threads: int = configs.option("concurrent requests", 4)
    max_side: int = configs.option("longest side of a photo", 512, unit="pixels")

    def __post_init__(self):
        configs.at_least(self, threads=1, max_side=32)


def photos(max_side: int) -> list[bytes]:
    """Returns 20 encoded photos of different sizes; every third one is truncated."""
    rng, encoded = np.random.default_rng(0), []
    for i in range(20):
        height, width = (int(side) for side in rng.integers(16, max_side + 1, 2))
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        kind = ("JPEG", "PNG", "WEBP", "GIF")[i % 4]
        Image.fromarray(coarse).resize((width, height)).save(out, kind)
        data = out.getvalue()
        encoded.append(data[: len(data) // 2] if i % 3 == 2 else data)
    return encoded


def ask(session, encoded, first, end: float, seed: int) -> tuple[int, float]:
    """Sends requests until the time is up; returns the photo count and the largest difference."""
    rng, count, worst = np.random.default_rng(seed), 0, 0.0
    while time.monotonic() < end:
        rows = rng.integers(0, len(encoded), rng.integers(1, 4))
        found = session.run("serving_default", {"image_bytes": [encoded[i] for i in rows]})
        for i, row, status in zip(rows, found["descriptors"], found["status"], strict=True):
            descriptor, expected = first[i]
            if status != expected:
                raise RuntimeError(f"photo {i}: status {status}, but {expected} the first time")
            worst = max(worst, float(np.abs(row - descriptor).max()))
        count += len(rows)
    return count, worst


def soak(config: SoakConfig) -> None:
    """Sends requests from several threads to an exported model; compares answers and memory."""
    from dolg_tf.runtime.session import CppSession

    encoded, memory, over = photos(config.max_side), [], threading.Event()
    with CppSession(config.saved_model) as session:
        first = []
        for data in encoded:
            found = session.run("serving_default", {"image_bytes": [data]})
            first.append((found["descriptors"][0], found["status"][0]))

        def sample():
            while not over.wait(config.seconds / SAMPLES):
                memory.append(timing.status("VmRSS"))

        sampler = threading.Thread(target=sample)
        sampler.start()
        end = time.monotonic() + config.seconds
        with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
            asking = [
                pool.submit(ask, session, encoded, first, end, seed)
                for seed in range(config.threads)
            ]
        over.set()
        sampler.join()
    counts, worst = zip(*(each.result() for each in asking), strict=True)
    half = np.asarray(memory[len(memory) // 2 :]) / 2**20
    tenth = max(1, len(half) // 5)
    before, after = np.median(half[:tenth]), np.median(half[-tenth:])
    growth = after / before - 1
    print(
        f"{sum(counts)} photos in {config.seconds:.0f} s by {config.threads} threads; largest "
        f"difference {max(worst):.1e}; {before:.0f} MB at half time, {after:.0f} MB at the end: "
        f"{growth:+.2%}"
    )
    if max(worst) > TOLERANCE or growth >= GROWTH:
        sys.exit("failed")


if __name__ == "__main__":
    command.main(soak, SoakConfig)
