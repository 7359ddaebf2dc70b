"""Draws docs/search_page.jpg: what `dolg search` shows of drawn photos, in Chromium.

python tests/support/search_picture.py
"""

import io
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

from PIL import Image
from playwright.sync_api import sync_playwright
from waiting import wait_for

ROOT = pathlib.Path(__file__).parents[2]
PICTURE = ROOT / "docs/search_page.jpg"
VIEW = {"width": 1000, "height": 780}  # pixels
GAP, WIDTH = 20, 1600  # pixels
DRAWN = ("--landmarks=16", "--unseen_landmarks=1", "--photos_per_landmark=12", "--size=320")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def _shots(address: str, photo: pathlib.Path) -> list[Image.Image]:
    """Returns the first screen, and the answer to a photo."""
    with sync_playwright() as playwright:
        # The sandbox needs rights that root in a container has not.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEW)
        page.goto(address)
        page.locator(".place").first.wait_for()
        page.wait_for_load_state("networkidle")
        shots = [page.screenshot()]
        page.set_input_files("#file", photo)
        page.locator(".found .photo").first.wait_for()
        page.wait_for_load_state("networkidle")
        shots.append(page.screenshot())
        browser.close()
    return [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]


def draw(folder: pathlib.Path) -> None:
    """Draws photos in a folder, searches them, and writes the picture."""
    dolg = [sys.executable, "-m", "dolg_tf"]
    subprocess.run([*dolg, "draw", f"--output={folder / 'drawn'}", *DRAWN], check=True)
    photos = folder / "holidays"
    shutil.copytree(folder / "drawn/train", photos)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("w") as output:
        words = [*dolg, "search", str(photos), f"--kept={folder / 'kept'}", f"--port={port}"]
        searching = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        done = re.compile("photos can be searched at")
        wait_for(lambda: done.search(log.read_text()) or searching.poll() is not None, seconds=600)
        assert searching.poll() is None, log.read_text()
        queries = sorted((folder / "drawn/test").rglob("*.jpg"))
        first, answer = _shots(f"http://127.0.0.1:{port}", queries[0])
    finally:
        searching.terminate()  # a shell in the background has its programs ignore SIGINT
        searching.wait()
    whole = Image.new("RGB", (2 * VIEW["width"] + GAP, VIEW["height"]), "#9aa0a8")
    whole.paste(first, (0, 0))
    whole.paste(answer, (VIEW["width"] + GAP, 0))
    whole.thumbnail((WIDTH, WIDTH))
    whole.save(PICTURE, quality=86)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        draw(pathlib.Path(temporary))
