"""Draws docs/match.jpg: verified matches of two drawn photos, by a network with ImageNet's weights.

python tests/support/match_picture.py
"""

import csv
import pathlib
import subprocess
import sys
import tempfile

PICTURE = pathlib.Path(__file__).parents[2] / "docs/match.jpg"
DRAWN = ("--landmarks=3", "--unseen_landmarks=1", "--photos_per_landmark=4", "--size=640")
TAKEN = ("procedural:1/3", "procedural:1/0")  # of the photos that these flags draw


def draw(folder: pathlib.Path) -> None:
    """Draws photos in a folder, exports the network, and writes the picture."""
    dolg = [sys.executable, "-m", "dolg_tf"]
    subprocess.run([*dolg, "draw", f"--output={folder / 'drawn'}", *DRAWN], check=True)
    with (folder / "drawn/train.csv").open(newline="") as file:
        ids = {row["url"]: row["id"] for row in csv.DictReader(file)}
    photos = [folder / "a.jpg", folder / "b.jpg"]
    for photo, url in zip(photos, TAKEN, strict=True):
        (found,) = (folder / "drawn/train").rglob(f"{ids[url]}.jpg")
        found.rename(photo)
    model = folder / "model"
    ready = "--backbone_weights=efficientnet_lite0"
    subprocess.run([*dolg, "export", ready, f"--output={model}"], check=True)
    words = [f"--saved_model={model}", f"--photos={','.join(map(str, photos))}", "--plausible"]
    subprocess.run([*dolg, "match", *words, f"--output={PICTURE}", "--overwrite"], check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        draw(pathlib.Path(temporary))
