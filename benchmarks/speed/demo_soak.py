"""Visitors of the page, for minutes: is its memory steady?

    python benchmarks/speed/demo_soak.py --saved_model=models/dolg/1 --index=indexes/mine

Starts `dolg demo`. Each visitor sends photos of random sizes under a new name, searches for a box
in each, and now and then breaks off in the middle. Fails when an answer is missing, or when memory
rises by more than 5 MB per minute over the second half of the time.
"""

import collections
import concurrent.futures
import dataclasses
import http.client
import io
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import timing
from PIL import Image

from dolg_tf.stage import command
from dolg_tf.stage import config as configs

SLOPE = 5.0  # MB per minute
EVERY = 0.5  # seconds between samples of the memory
ABORTED = 10  # one upload in so many is broken off


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSoakConfig:
    """Duration and load."""

    saved_model: str = configs.option("SavedModel that described the photos of the index")
    index: str = configs.option("index (a directory)")
    seconds: float = configs.option("duration", 600.0, unit="s")
    clients: int = configs.option("visitors at once", 20)
    max_side: int = configs.option("longest side of a photo", 1600, unit="pixels")

    def __post_init__(self):
        configs.at_least(self, clients=1, max_side=64)


def photo(rng: np.random.Generator, max_side: int) -> tuple[bytes, int, int]:
    """Returns a JPEG of random size, its width and its height."""
    width, height = (int(side) for side in rng.integers(48, max_side + 1, 2))
    coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(out, "JPEG")
    return out.getvalue(), width, height


class Visitor:
    """One who uses the page as a browser does.

    Args:
      port: of the page.
      seed: of their photos.
    """

    def __init__(self, port: int, seed: int):
        self._port, self._seed = port, seed
        self._rng = np.random.default_rng(seed)
        self.told = collections.Counter()

    def _ask(self, method, path, body=None, **headers):
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            link.request(method, path, body, headers)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def _send(self, visitor: str, data: bytes) -> str:
        """Sends a photo; returns the page's word for it."""
        kind = {"content_type": "image/jpeg", "x_visitor": visitor}
        status, body = self._ask("POST", "/sent?name=photo.jpg", data, **kind)
        if status != 200 or b'"sent"' not in body:
            raise RuntimeError(f"a photo: {status} {body[:200]}")
        return json.loads(body)["sent"]

    def _break_off(self, data: bytes) -> None:
        head = (
            f"POST /sent?name=photo.jpg HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n"
            f"x-visitor: gone\r\ncontent-length: {len(data) + 1000}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port)) as link:
            link.sendall(head.encode() + data)

    def _search(self, visitor: str, word: str, box: str = "") -> str:
        status, body = self._ask("GET", f"/answer?sent={word}&box={box}", x_visitor=visitor)
        if status != 200:
            return f"refused with {status}"
        return "answered" if b"searched in" in body else "no answer"

    def visit(self, end: float, max_side: int) -> collections.Counter:
        """Visits until the time is up; returns how often the page did what."""
        for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
            data, width, height = photo(self._rng, max_side)
            visitor = f"visitor{self._seed}x{number}"
            if number % ABORTED == ABORTED - 1:
                self._break_off(data)
            word = self._send(visitor, data)
            self.told[self._search(visitor, word)] += 1
            box = f"0,0,{max(1, width // 2)},{height}"
            self.told[self._search(visitor, word, box)] += 1
        return self.told


def slope(times: np.ndarray, memory: np.ndarray) -> float:
    """Returns MB per minute, by least squares over the second half of the samples."""
    half = len(times) // 2
    return float(np.polyfit(times[half:] / 60, memory[half:], 1)[0])


def soak(config: DemoSoakConfig) -> None:
    """Visits the page from several threads, and watches the memory of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--saved_model={config.saved_model}", f"--index={config.index}", f"--port={port}"]
    with tempfile.TemporaryFile("w+") as log:
        words = [sys.executable, "-m", "dolg_tf", "demo", *flags]
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            while True:
                log.seek(0)
                if "ready at" in log.read():
                    break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(log.read())
                time.sleep(0.2)
            start, over, samples = time.monotonic(), threading.Event(), []

            def sample():
                while not over.wait(EVERY):
                    memory = timing.status("VmRSS", process.pid) / 2**20
                    samples.append((time.monotonic() - start, memory))

            sampler = threading.Thread(target=sample)
            sampler.start()
            end = start + config.seconds
            with concurrent.futures.ThreadPoolExecutor(config.clients) as pool:
                visits = [
                    pool.submit(Visitor(port, seed).visit, end, config.max_side)
                    for seed in range(config.clients)
                ]
            over.set()
            sampler.join()
            log.seek(0)
            traces = log.read().count("Traceback")
        finally:
            process.terminate()
            process.wait(30)
    told = sum((visit.result() for visit in visits), collections.Counter())
    times, memory = np.array(samples).T
    rising = slope(times, memory)
    print(
        f"{dict(told)} in {config.seconds:.0f} s by {config.clients} visitors, {traces} "
        f"tracebacks; memory {memory[0]:.0f} MB at first, {memory[len(memory) // 2]:.0f} MB at "
        f"half time, {memory[-1]:.0f} MB at the end, at most {memory.max():.0f} MB: "
        f"{rising:+.1f} MB per minute over the second half"
    )
    if rising > SLOPE or traces or set(told) - {"answered"}:
        sys.exit("failed")


if __name__ == "__main__":
    command.main(soak, DemoSoakConfig)
