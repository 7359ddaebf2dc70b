"""The procedural landmark set: what is on disk, and that it is the same however it was made."""

import contextlib
import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dolg_tf.data.procedural import camera, scene, write
from dolg_tf.data.procedural.surroundings import foreground
from dolg_tf.stage.config import InputError

SMALL = {
    "landmarks": 4,
    "unseen_landmarks": 2,
    "photos_per_landmark": 6,
    "index_per_landmark": 6,
    "queries_per_landmark": 2,
    "size": 64,
    "processes": 1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"the ground truth is not plain: {module}.{name}")


def _ground_truth(folder, name):
    with (folder / f"gnd_{name}.pkl").open("rb") as file:
        return _PlainUnpickler(file).load()


def _bytes(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "set"
    write.write_toy(write.ToyConfig(output=str(folder), **SMALL))
    return folder


# --- what is on disk -----------------------------------------------------------------


def test_train_lists_and_photos_agree(small):
    rows = _rows(small / "train.csv")
    assert list(rows[0]) == ["id", "url", "landmark_id"]
    assert len(rows) == 4 * 6 and all(re.fullmatch("[0-9a-f]{16}", row["id"]) for row in rows)
    clean = {
        row["landmark_id"]: row["images"].split(" ") for row in _rows(small / "train_clean.csv")
    }
    assert {name: len(ids) for name, ids in clean.items()} == dict.fromkeys(clean, 6)
    assert {row["id"]: row["landmark_id"] for row in rows} == {
        id: name for name, ids in clean.items() for id in ids
    }
    # Sparse, so that relabeling has something to do.
    assert len(clean) == 4 and set(map(int, clean)) != set(range(4))
    on_disk = sorted((small / "train").rglob("*.jpg"))
    assert sorted(path.stem for path in on_disk) == sorted(row["id"] for row in rows)
    for path in on_disk:
        assert path.relative_to(small / "train").parts[:3] == tuple(path.stem[:3])
        with Image.open(path) as image:
            assert image.mode == "RGB" and max(image.size) == 64


def test_photos_of_the_splits_differ(small):
    paths = list(small.rglob("*.jpg"))
    assert len(paths) == 4 * 6 + 4 * (6 + 2)
    assert len({path.stem for path in paths}) == len({path.read_bytes() for path in paths})
    assert len({path.stem for path in paths}) == len(paths)


def test_ground_truths_share_an_index(small):
    seen, unseen = _ground_truth(small, "seen"), _ground_truth(small, "unseen")
    index = seen["imlist"]
    assert index == unseen["imlist"] and len(index) == len(set(index)) == 4 * 6
    assert len(set(seen["qimlist"]) | set(unseen["qimlist"])) == 4 * 2
    found = sorted(p.relative_to(small).with_suffix("").as_posix() for p in small.rglob("*.jpg"))
    listed = index + seen["qimlist"] + unseen["qimlist"]
    assert sorted(listed) == [path for path in found if not path.startswith("train/")]
    for truth in (seen, unseen):
        for query, entry in zip(truth["qimlist"], truth["gnd"], strict=True):
            assert list(entry) == ["bbx", "easy", "hard", "junk"]
            assert [len(entry[key]) for key in ("easy", "hard", "junk")] == [2, 2, 2]
            x1, y1, x2, y2 = entry["bbx"]
            with Image.open(small / f"{query}.jpg") as image:
                assert 0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height
            assert (x2 - x1) * (y2 - y1) > 0.05 * image.width * image.height


def test_ground_truth_names_the_photos_of_the_landmark(small):
    config = write.ToyConfig(output=str(small), **SMALL)
    photos = {photo.path: photo for photo in write._list_photos(config)}
    for name, landmarks in (("seen", {0, 1}), ("unseen", {4, 5})):
        truth = _ground_truth(small, name)
        assert {photos[query].landmark for query in truth["qimlist"]} == landmarks
        for query, entry in zip(truth["qimlist"], truth["gnd"], strict=True):
            for severity in ("easy", "hard", "junk"):
                expected = [
                    place
                    for place, path in enumerate(truth["imlist"])
                    if photos[path].landmark == photos[query].landmark
                    and photos[path].severity == severity
                ]
                assert entry[severity] == expected


def test_twelve_index_photos_are_five_easy_four_hard_three_junk():
    photos = write._list_photos(write.ToyConfig(output="unused"))
    chosen = [photo.severity for photo in photos if photo.split == "index" and photo.landmark == 0]
    assert [chosen.count(severity) for severity in ("easy", "hard", "junk")] == [5, 4, 3]
    assert len(photos) == 60 * 30 + 60 * (12 + 3)


# --- the same however it was made ----------------------------------------------------


def test_processes_do_not_matter(small, tmp_path):
    config = write.ToyConfig(output=str(tmp_path / "set"), **{**SMALL, "processes": 2})
    write.write_toy(config)
    assert _bytes(tmp_path / "set") == _bytes(small)


def test_second_run_writes_what_is_missing_and_the_same(tmp_path):
    config = write.ToyConfig(output=str(tmp_path), **SMALL)
    write.write_toy(config)
    before = _bytes(tmp_path)
    kept = next((tmp_path / "test").rglob("*.jpg"))
    stamp = kept.stat().st_mtime_ns
    victims = [path for path in tmp_path.rglob("*.jpg") if path != kept][::3]
    for path in [*victims, tmp_path / "gnd_seen.pkl"]:
        path.unlink()
    write.write_toy(config)
    assert _bytes(tmp_path) == before
    assert kept.stat().st_mtime_ns == stamp


def test_finished_set_is_left_alone(small, monkeypatch):
    monkeypatch.setattr(write, "_render", None)
    write.write_toy(write.ToyConfig(output=str(small), **SMALL))


def test_another_seed_is_another_set(small, tmp_path):
    write.write_toy(write.ToyConfig(output=str(tmp_path), **SMALL, seed=1))
    ids = {path.stem for path in tmp_path.rglob("*.jpg")}
    assert not ids & {path.stem for path in small.rglob("*.jpg")}


def test_processes_do_not_outlive_a_killed_one(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dolg_tf",
        "draw",
        f"--output={tmp_path}",
        "--processes=2",
    ]
    killed = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while not list(tmp_path.rglob("*.jpg")):
            assert time.monotonic() < deadline, "no photo was drawn"
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(killed.pid, 0)
                time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)


# --- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("size", 80), ("seed", 1), ("landmarks", 5)])
def test_another_configuration_in_the_folder_is_refused(small, name, value):
    before = _bytes(small)
    config = write.ToyConfig(output=str(small), **{**SMALL, name: value})
    with pytest.raises(InputError, match=rf"--{name}={SMALL.get(name, 0)}, not {value}; choose"):
        write.write_toy(config)
    assert _bytes(small) == before


def test_somebody_elses_set_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n")
    with pytest.raises(InputError, match=r"train\.csv but no toy\.json"):
        write.write_toy(write.ToyConfig(output=str(tmp_path), **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_set_of_another_format_is_refused(tmp_path):
    (tmp_path / "toy.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(InputError, match="format_version is 99"):
        write.write_toy(write.ToyConfig(output=str(tmp_path), **SMALL))


@pytest.mark.parametrize(
    ("name", "value"), [("landmarks", 1), ("index_per_landmark", 2), ("size", 20), ("seed", -1)]
)
def test_bad_value_is_named(name, value):
    with pytest.raises(InputError, match=f"--{name}={value} must be"):
        write.ToyConfig(output="unused", **{name: value})


def test_command_says_in_one_line_that_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    command = [
        sys.executable,
        "-m",
        "dolg_tf",
        "draw",
        f"--output={tmp_path / 'file' / 'set'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "file/set cannot be written" in done.stderr


# --- the landmark and the camera -----------------------------------------------------


def test_landmarks_differ_in_outline():
    outlines = []
    for number in range(20):
        image = scene.draw_landmark(0, number, 96).levels[0][0]
        square = np.asarray(image.getchannel("A").resize((48, 48))) > 127
        outlines.append((image.width / image.height, square))
    for i, (aspect, square) in enumerate(outlines):
        for other_aspect, other in outlines[:i]:
            overlap = (square & other).sum() / (square | other).sum()
            assert overlap < 0.97 or abs(np.log(aspect / other_aspect)) > 0.1


def test_relief_is_the_central_difference():
    height = np.random.default_rng(0).integers(100, 110, (7, 9)).astype(np.uint8)
    relief = scene._relief(height, 384)
    padded = np.pad(height.astype(float), 1, mode="edge")
    for y in range(7):
        for x in range(9):
            right = (padded[y + 1, x + 2] - padded[y + 1, x]) / 2
            up = (padded[y, x + 1] - padded[y + 2, x + 1]) / 2
            expected = (int(128 + 4 * right), int(128 + 4 * up), height[y, x])
            assert tuple(relief[y, x]) == expected


@pytest.mark.parametrize("number", range(5))
def test_box_and_points_match_the_rendered_landmark(number):
    landmark = scene.draw_landmark(0, number, 384)
    view = camera.sample_view(np.random.default_rng(number), landmark, "easy", 160)
    alpha = np.asarray(camera._warp(landmark, view)[0].getchannel("A").reduce(2))
    rows, columns = np.nonzero(alpha > 127)
    rendered = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_allclose(view.box, rendered, atol=5)
    columns, rows = view.points[view.seen].astype(int).T
    assert (alpha[rows, columns] > 0).mean() > 0.97


def _visible_and_area(severity, number):
    """Share of the landmark that is neither cut off nor hidden; share of the photo it takes."""
    landmark = scene.draw_landmark(0, number % 5, 128)
    rng = np.random.default_rng(number)
    view = camera.sample_view(rng, landmark, severity, 96)
    inside = view.points[view.seen]
    columns, rows = inside.astype(int).T
    front = foreground(rng, view.size, inside, view.unit, view.limits.hidden)
    free = np.asarray(front.getchannel("A"))[rows, columns] == 0
    area = np.prod(np.subtract(view.box[2:], view.box[:2])) / np.prod(view.size)
    return free.sum() / len(view.points), area, view.limits


def test_easy_views_show_all_and_junk_next_to_nothing():
    for number in range(40):
        visible, area, _ = _visible_and_area("easy", number)
        assert visible > 0.88 and area > 0.12
        visible, area, limits = _visible_and_area("hard", number)
        assert visible > 0.5 and area > 0.03 and limits != camera._EASY
        visible, area, _ = _visible_and_area("junk", number)
        assert visible < 0.2 or area < 0.03


def test_photo_depends_on_its_generator_alone():
    landmark = scene.draw_landmark(0, 3, 96)

    def photo(seed):
        rng = np.random.default_rng(seed)
        view = camera.sample_view(rng, landmark, "hard", 64)
        return np.asarray(camera.take_photo(rng, landmark, view)), view.size

    first, size = photo(5)
    assert first.dtype == np.uint8 and first.shape == (size[1], size[0], 3)
    assert np.array_equal(first, photo(5)[0])
    assert not np.array_equal(first, photo(6)[0])


# --- colour does not give it away ----------------------------------------------------


def _histogram(path, box=None):
    """L2-normalised square root of the joint histogram of 8 x 8 x 8 colours."""
    with Image.open(path) as image:
        pixels = np.asarray(image.crop(box) if box else image).reshape(-1, 3) // 32
    counts = np.bincount(pixels @ np.array([64, 8, 1]), minlength=512)
    return np.sqrt(counts / counts.sum())


def _average_precision(order, positive, junk):
    found, total = 0, 0.0
    kept = [i for i in order if i not in junk]
    for rank, i in enumerate(kept):
        if i in positive:
            found += 1
            previous = 1.0 if rank == 0 else (found - 1) / rank
            total += (previous + found / (rank + 1)) / 2
    return total / len(positive)


def test_colour_histogram_does_not_find_the_landmark(tmp_path):
    sizes = {"landmarks": 10, "unseen_landmarks": 5, "photos_per_landmark": 1, "size": 64}
    write.write_toy(write.ToyConfig(output=str(tmp_path), **sizes))
    for name in ("seen", "unseen"):
        truth = _ground_truth(tmp_path, name)
        index = np.stack([_histogram(tmp_path / f"{path}.jpg") for path in truth["imlist"]])
        precisions = []
        for query, entry in zip(truth["qimlist"], truth["gnd"], strict=True):
            box = tuple(int(value) for value in entry["bbx"])
            scores = index @ _histogram(tmp_path / f"{query}.jpg", box)
            positive = {*entry["easy"], *entry["hard"]}
            precisions.append(_average_precision(np.argsort(-scores), positive, {*entry["junk"]}))
        assert np.mean(precisions) < 0.35
