"""The records builder: lists, split, policies for odd photos, and runs that were cut off."""

import collections
import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.config import InputError
from dolg_tf.data import gldv2, records, shards
from dolg_tf.data.gldv2 import RecordsConfig, build_records


def jpeg(number, mode="RGB", kind="JPEG", **options):
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((30, 24)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def name_of(number):
    return f"{number * 7919:016x}"[::-1]


def put(root, name, data):
    path = root / name[0] / name[1] / name[2] / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def gldv2_folder(tmp_path):
    """Landmarks 900, 70, 8 with 10, 5, 1 photos."""
    labels = [900] * 10 + [70] * 5 + [8]
    rows, clean = [], collections.defaultdict(list)
    for number, landmark in enumerate(labels):
        name = name_of(number)
        put(tmp_path / "train", name, jpeg(number))
        rows.append(f"{name},http://x/y,{landmark}")
        clean[landmark].append(name)
    (tmp_path / "train.csv").write_text("\n".join(["id,url,landmark_id", *rows]) + "\n")
    lines = [f"{landmark},{' '.join(names)}" for landmark, names in clean.items()]
    (tmp_path / "train_clean.csv").write_text("\n".join(["landmark_id,images", *lines]) + "\n")
    return tmp_path


def settings(folder, **changes):
    values = {
        "images_dir": str(folder / "train"),
        "train_csv": str(folder / "train.csv"),
        "train_clean_csv": str(folder / "train_clean.csv"),
        "output_dir": str(folder / "records"),
        "num_shards": 3,
        "processes": 1,
    }
    return RecordsConfig(**values | changes)


def read(folder, split):
    """Returns {id: (label, JPEG bytes)} as TensorFlow reads the records."""
    paths = sorted(str(path) for path in pathlib.Path(folder).glob(f"{split}-*"))
    photos = [records.parse(data) for data in tf.data.TFRecordDataset(paths)]
    found = {p["id"].numpy().decode(): (int(p["label"]), p["encoded"].numpy()) for p in photos}
    assert len(found) == len(photos)
    return found


def test_gldv2_becomes_records(gldv2_folder):
    summary = build_records(settings(gldv2_folder))
    train, validation = (read(gldv2_folder / "records", s) for s in ("train", "validation"))
    assert (summary["train"], summary["validation"]) == (len(train), len(validation)) == (13, 3)
    assert summary["num_classes"] == 3 and summary["bad"] == 0
    everything = train | validation
    assert len(everything) == 16
    expected = [2] * 10 + [1] * 5 + [0]
    for number, label in enumerate(expected):
        assert everything[name_of(number)] == (label, jpeg(number))
    assert collections.Counter(label for label, _ in validation.values()) == {2: 2, 1: 1}
    text = (gldv2_folder / "records" / "relabeling.csv").read_text()
    assert text == "new_label,old_label\n0,8\n1,70\n2,900\n"
    assert json.loads((gldv2_folder / "records" / "records.json").read_text()) == summary
    names = sorted(path.name for path in (gldv2_folder / "records").iterdir())
    split = [f"{s}-{i:05d}-of-00003" for s in ("train", "validation") for i in range(3)]
    assert names == sorted([*split, "records.json", "relabeling.csv"])


def test_train_csv_alone_gives_the_same(gldv2_folder):
    build_records(settings(gldv2_folder))
    build_records(
        settings(gldv2_folder, train_clean_csv="", output_dir=str(gldv2_folder / "other"))
    )
    for split in ("train", "validation"):
        assert read(gldv2_folder / "records", split) == read(gldv2_folder / "other", split)


def test_processes_change_nothing(gldv2_folder):
    build_records(settings(gldv2_folder))
    build_records(settings(gldv2_folder, processes=2, output_dir=str(gldv2_folder / "other")))
    ours = {path.name: path.read_bytes() for path in (gldv2_folder / "records").glob("*-of-*")}
    other = {path.name: path.read_bytes() for path in (gldv2_folder / "other").glob("*-of-*")}
    assert ours == other and len(ours) == 6


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
def test_split(fraction):
    counts = [1, 2, 3, 5, 10, 100]
    labels = np.repeat(np.arange(6), counts)
    split = gldv2.split_photos(labels, fraction, 3)
    joined = np.concatenate([split["train"], split["validation"]])
    np.testing.assert_array_equal(np.sort(joined), np.arange(121))
    held = np.bincount(labels[split["validation"]], minlength=6)
    expected = [min(int(count * fraction + 0.5), count - 1) for count in counts]
    np.testing.assert_array_equal(held, expected)
    again = gldv2.split_photos(labels, fraction, 3)
    np.testing.assert_array_equal(again["train"], split["train"])
    if fraction == 0.2:
        other = gldv2.split_photos(labels, fraction, 4)
        assert set(other["validation"]) != set(split["validation"])
        assert (np.diff(labels[split["train"]]) < 0).any()  # shuffled over the landmarks


def test_own_photos(tmp_path):
    for number in range(6):
        path = tmp_path / "mine" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    rows = ["path,landmark,split,extra"]
    rows += [f"mine/{i}.jpg,{'ba'[i % 2]},{'query' if i == 5 else 'train'}," for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    summary = build_records(
        RecordsConfig(
            labels_csv=str(tmp_path / "labels.csv"),
            output_dir=str(tmp_path / "records"),
            validation_fraction=0.0,
            processes=1,
        )
    )
    assert (summary["train"], summary["validation"], summary["num_classes"]) == (5, 0, 2)
    found = read(tmp_path / "records", "train")
    assert {name: label for name, (label, _) in found.items()} == {
        f"mine/{i}": 1 - i % 2 for i in range(5)
    }
    assert len(list((tmp_path / "records").glob("train-*-of-00005"))) == 5  # no empty files
    assert (tmp_path / "records/relabeling.csv").read_text().splitlines()[1:] == ["0,a", "1,b"]


def test_odd_photos(gldv2_folder, caplog):
    caplog.set_level("INFO")
    root = gldv2_folder / "train"
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root, name_of(0), jpeg(0, "L"))
    put(root, name_of(1), jpeg(1, "CMYK"))
    png = put(root, name_of(2), jpeg(2, "RGBA", "PNG"))
    rotated = put(root, name_of(3), jpeg(3, exif=exif)).read_bytes()
    put(root, name_of(4), jpeg(4)).unlink()
    put(root, name_of(5), jpeg(5)[:300])
    put(root, name_of(6), b"<html>not found</html>")
    put(root, name_of(15), b"")  # the only photo of landmark 8
    summary = build_records(settings(gldv2_folder))
    assert summary["reencoded"] == {"JPEG CMYK": 1, "JPEG L": 1, "PNG RGBA": 1}
    assert summary["exif_rotated"] == 1 and summary["bad"] == 4
    assert summary["train"] + summary["validation"] == 12
    assert summary["landmarks_without_training_photo"] == 1 and summary["num_classes"] == 3
    found = read(gldv2_folder / "records", "train") | read(gldv2_folder / "records", "validation")
    assert found[name_of(3)][1] == rotated
    for number in range(3):
        data = found[name_of(number)][1]
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (30, 24))
    with Image.open(png) as image, Image.open(io.BytesIO(found[name_of(2)][1])) as again:
        difference = np.asarray(image.convert("RGB"), float) - np.asarray(again)
        assert np.abs(difference).mean() < 6
    lines = (gldv2_folder / "records" / "bad_photos.txt").read_text().splitlines()
    reasons = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    assert set(reasons) == {name_of(number) for number in (4, 5, 6, 15)}
    assert reasons[name_of(4)] == "missing" and "truncated" in reasons[name_of(5)].lower()
    assert "bad photos left out: 4" in caplog.text and "1 PNG RGBA" in caplog.text


def test_strict(gldv2_folder):
    missing = put(gldv2_folder / "train", name_of(4), b"")
    missing.unlink()
    with pytest.raises(InputError, match=f"{name_of(4)}.jpg: missing"):
        build_records(settings(gldv2_folder, strict=True))
    assert not (gldv2_folder / "records" / "records.json").exists()
    missing.write_bytes(jpeg(4))
    assert build_records(settings(gldv2_folder, strict=True))["bad"] == 0


def test_no_photo_can_be_used(gldv2_folder):
    with pytest.raises(InputError, match=r"none of 16 photos can be used: nowhere/.*: missing"):
        build_records(settings(gldv2_folder, images_dir="nowhere"))
    assert build_records(settings(gldv2_folder))["train"] == 13


def test_finished_shards_are_kept(gldv2_folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    written = []
    write_shard = shards.write_shard

    def fails_at_the_fourth(shard):
        if len(written) == 3:
            raise OSError("disk full")
        written.append(shard.path.name)
        return write_shard(shard)

    monkeypatch.setattr(shards, "write_shard", fails_at_the_fourth)
    with pytest.raises(OSError, match="disk full"):
        build_records(settings(gldv2_folder))
    output = gldv2_folder / "records"
    assert not list(output.glob("train-*"))  # nobody trains on a part
    with pytest.raises(InputError, match=r"another configuration \(seed was 0\)"):
        build_records(settings(gldv2_folder, seed=1))

    def works(shard):
        written.append(shard.path.name)
        return write_shard(shard)

    monkeypatch.setattr(shards, "write_shard", works)
    build_records(settings(gldv2_folder))
    assert len(written) == len(set(written)) == 6
    assert "3 of 6 record files are kept" in caplog.text
    build_records(settings(gldv2_folder, processes=2))
    assert len(written) == 6
    with pytest.raises(InputError, match="another configuration"):
        build_records(settings(gldv2_folder, num_shards=4))


def test_foreign_records_are_not_mixed_in(gldv2_folder):
    (gldv2_folder / "records").mkdir()
    (gldv2_folder / "records" / "train-00000-of-00128").write_bytes(b"")
    with pytest.raises(InputError, match="train-00000-of-00128 is in the way"):
        build_records(settings(gldv2_folder))


def test_killed_run_goes_on(gldv2_folder):
    big = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(big, "PNG")
    for number in range(16):
        put(gldv2_folder / "train", name_of(number), big.getvalue())
    config = settings(gldv2_folder, processes=2, num_shards=8)
    flags = [f"--{k}={getattr(config, k)}" for k in ("images_dir", "train_csv", "output_dir")]
    command = [sys.executable, "-m", "dolg_tf.data.gldv2", *flags, "--num_shards=8"]
    process = subprocess.Popen([*command, "--processes=2"], start_new_session=True)
    building = gldv2_folder / "records" / ".building"
    deadline = time.monotonic() + 60
    while not list(building.glob("*-of-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline:  # its processes end by themselves
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("processes outlived the builder")
    kept = {path: path.stat().st_mtime_ns for path in building.glob("*-of-*.json")}
    assert 0 < len(kept) < 11 and not (gldv2_folder / "records" / "records.json").exists()
    for number in range(16):  # what was done is not looked at again
        put(gldv2_folder / "train", name_of(number), jpeg(number))
    subprocess.run(command, check=True, capture_output=True)
    output = gldv2_folder / "records"
    found = read(output, "train") | read(output, "validation")
    assert len(found) == 16 and not building.exists()
    sizes = [len(data) for _, data in found.values()]
    assert min(sizes) < 3000 and max(sizes) > 100_000


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("clean", "landmark_id,pictures\n", "list.csv, line 1: no column 'images'"),
        ("clean", "", "list.csv, line 1: no column 'images'"),
        ("clean", "landmark_id,images\n", "it lists no photo"),
        ("clean", "landmark_id,images\n3,abcd\n4,../etc\n", "line 3: '../etc' is no image id"),
        ("clean", "landmark_id,images\n3,abcd abcd\n", "line 2: 'abcd' is listed twice"),
        ("clean", "landmark_id,images\nx3,abcd\n", "line 2: landmark_id is 'x3', not a number"),
        ("train", "id,url,landmark_id\nabcd,u,1\nab,u,1\n", "line 3: 'ab' is no image id"),
        ("train", "id,url,landmark_id\nabcd,1\n", "line 2: 2 fields, the header has 3"),
        ("train", "id,landmark_id\nabcd,\xff1\n", "after line 0"),
        ("own", "path,landmark\n../x.jpg,a\n", "line 2: '../x.jpg' leads out of"),
        ("own", "path,landmark\nx.jpg,\n", "line 2: an empty landmark"),
        ("own", "path,landmark,split\nx.jpg,a,query\n", "it lists no photo to train on"),
        ("own", "path,label\nx.jpg,a\n", "line 1: no column 'landmark', only path,label"),
    ],
)
def test_wrong_list_is_named(tmp_path, kind, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("latin-1"))
    option = {"clean": "train_clean_csv", "train": "train_csv", "own": "labels_csv"}[kind]
    with pytest.raises(InputError) as error:
        build_records(
            RecordsConfig(**{option: str(path)}, images_dir="photos", output_dir=str(tmp_path))
        )
    assert message in str(error.value) and str(path) in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.csv"]


def test_no_list(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        build_records(RecordsConfig(labels_csv="nowhere.csv", output_dir=str(tmp_path)))


def test_landmark_with_very_many_photos(tmp_path):
    """GLDv2's longest field is longer than the csv module takes by default."""
    names = " ".join(f"{number:016x}" for number in range(12_000))
    (tmp_path / "clean.csv").write_text(f"landmark_id,images\n5,{names}\n")
    photos, landmarks = gldv2.read_photos(
        RecordsConfig(train_clean_csv=str(tmp_path / "clean.csv"), images_dir="x", output_dir="y")
    )
    assert len(photos) == 12_000 and landmarks == [5]
    assert photos[1] == shards.Photo("0000000000000001", "x/0/0/0/0000000000000001.jpg", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give --train_csv"),
        ({"train_csv": "a", "labels_csv": "b"}, "give --train_csv"),
        ({"train_csv": "a"}, "--images_dir is required"),
        ({"labels_csv": "a", "num_shards": 0}, "--num_shards=0"),
        ({"labels_csv": "a", "validation_fraction": 1.0}, "--validation_fraction=1.0"),
        ({"labels_csv": "a", "processes": -1}, "--processes=-1"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(InputError, match=message):
        RecordsConfig(output_dir="x", **changes)


def test_real_photos(real_photos, tmp_path):
    labels = real_photos / "labels.csv"
    with labels.open() as file:
        wanted = sum(row["split"] == "train" for row in csv.DictReader(file))
    summary = build_records(RecordsConfig(labels_csv=str(labels), output_dir=str(tmp_path)))
    assert summary["train"] + summary["validation"] + summary["bad"] == wanted
    assert summary["bad"] == 0
