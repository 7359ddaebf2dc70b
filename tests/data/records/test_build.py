"""The records builder: split, policies for odd photos, own photos and options."""

import collections
import csv
import io
import json
import os

import numpy as np
import odd_photos
import pytest
from gldv2_files import files_of, jpeg, name_of, put, read, settings, write_gldv2
from PIL import Image

from dolg_tf.data import photo_files
from dolg_tf.data.records import build, example, tfrecord
from dolg_tf.data.records.build import RecordsConfig, build_records
from dolg_tf.stage.config import InputError


@pytest.fixture
def gldv2_folder(tmp_path):
    write_gldv2(tmp_path)
    return tmp_path


def test_gldv2_becomes_records(gldv2_folder):
    summary = build_records(settings(gldv2_folder))
    train, validation = (read(gldv2_folder / "records", s) for s in ("train", "validation"))
    assert (summary["train"], summary["validation"]) == (len(train), len(validation)) == (13, 3)
    assert summary["num_classes"] == 3 and summary["left_out"] == 0
    everything = train | validation
    assert len(everything) == 16
    expected = [2] * 10 + [1] * 5 + [0]
    for number, label in enumerate(expected):
        assert everything[name_of(number)] == (label, jpeg(number))
    assert collections.Counter(label for label, _ in validation.values()) == {2: 2, 1: 1}
    text = (gldv2_folder / "records" / "relabeling.csv").read_text()
    assert text == "new_label,old_label\n0,8\n1,70\n2,900\n"
    text = (gldv2_folder / "records" / "class_counts.csv").read_text()
    assert text == "label,photos\n0,1\n1,4\n2,8\n"
    assert json.loads((gldv2_folder / "records" / "records.json").read_text()) == summary
    names = sorted(path.name for path in (gldv2_folder / "records").iterdir())
    split = [f"{s}-{i:05d}-of-00003" for s in ("train", "validation") for i in range(3)]
    assert names == sorted([*split, "class_counts.csv", "records.json", "relabeling.csv"])


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
    ours = files_of(gldv2_folder / "records")
    assert ours == files_of(gldv2_folder / "other") and len(ours) == 8


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
def test_split(fraction):
    counts = [1, 2, 3, 5, 10, 100]
    labels = np.repeat(np.arange(6), counts)
    split = build.split_photos(labels, fraction, 3)
    joined = np.concatenate([split["train"], split["validation"]])
    np.testing.assert_array_equal(np.sort(joined), np.arange(121))
    held = np.bincount(labels[split["validation"]], minlength=6)
    expected = [min(int(count * fraction + 0.5), count - 1) for count in counts]
    np.testing.assert_array_equal(held, expected)
    again = build.split_photos(labels, fraction, 3)
    np.testing.assert_array_equal(again["train"], split["train"])
    if fraction == 0.2:
        other = build.split_photos(labels, fraction, 4)
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
    put(root, name_of(1), jpeg(1, "CMYK", exif=exif))
    png = put(root, name_of(2), jpeg(2, "RGBA", "PNG"))
    rotated = put(root, name_of(3), jpeg(3, exif=exif)).read_bytes()
    put(root, name_of(4), jpeg(4)).unlink()
    put(root, name_of(5), jpeg(5)[:300])
    put(root, name_of(6), b"<html>not found</html>")
    put(root, name_of(7), jpeg(7, "I", "TIFF"))
    put(root, name_of(15), b"")  # the only photo of landmark 8
    summary = build_records(settings(gldv2_folder))
    assert summary["odd_photos"] == {
        "missing": 1,
        "corrupt": 3,
        "unsupported": 1,
        "too_large": 0,
        "crashed": 0,
        "non_jpeg": 1,
        "grey": 1,
        "cmyk": 1,
        "exif_rotated": 2,
    }
    assert summary["left_out"] == 5 and summary["train"] + summary["validation"] == 11
    assert summary["landmarks_without_training_photo"] == 1 and summary["num_classes"] == 3
    train, validation = (read(gldv2_folder / "records", s) for s in ("train", "validation"))
    counts = collections.Counter(label for label, _ in train.values())
    text = (gldv2_folder / "records" / "class_counts.csv").read_text()
    assert text == f"label,photos\n0,0\n1,{counts[1]}\n2,{counts[2]}\n"
    found = train | validation
    assert found[name_of(3)][1] == rotated
    for number in range(3):
        data = found[name_of(number)][1]
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (30, 24))
    with Image.open(png) as image, Image.open(io.BytesIO(found[name_of(2)][1])) as again:
        difference = np.asarray(image.convert("RGB"), float) - np.asarray(again)
        assert np.abs(difference).mean() < 6
    header, *lines = (gldv2_folder / "records" / "odd_photos.tsv").read_text().splitlines()
    assert header == "id\tpath\tkind\tdetail"
    odd = {(cells[0], cells[2]): cells for cells in (line.split("\t") for line in lines)}
    assert len(odd) == len(lines) == 10
    name = name_of(4)
    assert odd[name, "missing"][1] == f"{root}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"
    assert odd[name_of(5), "corrupt"][3] == "it ends before its end marker"
    assert odd[name_of(6), "corrupt"][3] == odd[name_of(15), "corrupt"][3] == "not a picture"
    assert odd[name_of(7), "unsupported"][3] == "TIFF with pixels of I"
    assert odd[name_of(1), "cmyk"][3] == "JPEG CMYK"
    assert odd[name_of(1), "exif_rotated"][3] == odd[name_of(3), "exif_rotated"][3]
    assert odd[name_of(3), "exif_rotated"][3] == "orientation 6"
    assert "left out: 1 missing, 3 corrupt, 1 unsupported" in caplog.text
    assert "as RGB JPEG: 1 non_jpeg, 1 grey, 1 cmyk" in caplog.text


def test_pillows_remarks_on_odd_exif_are_not_shown(gldv2_folder, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "a long enough description"
    data = exif.tobytes()
    put(gldv2_folder / "train", name_of(3), jpeg(3, exif=data[: len(data) - 9]))
    with Image.open(io.BytesIO(jpeg(3, exif=data[: len(data) - 9]))) as image:
        image.getexif().get(0x010E)
    assert len(recwarn) == 1
    assert not any(build_records(settings(gldv2_folder))["odd_photos"].values())
    assert len(recwarn) == 1


def test_strict(gldv2_folder):
    missing = put(gldv2_folder / "train", name_of(4), b"")
    missing.unlink()
    with pytest.raises(InputError, match=f"{name_of(4)}.jpg: missing"):
        build_records(settings(gldv2_folder, strict=True))
    assert not (gldv2_folder / "records" / "records.json").exists()
    missing.write_bytes(jpeg(4, "L"))  # is encoded again: nothing is lost
    assert build_records(settings(gldv2_folder, strict=True))["left_out"] == 0


def test_strict_refuses_what_was_built_without(gldv2_folder):
    put(gldv2_folder / "train", name_of(4), b"")
    build_records(settings(gldv2_folder))
    with pytest.raises(InputError, match=r"1 photos were left out: see .*odd_photos\.tsv"):
        build_records(settings(gldv2_folder, strict=True))


def circle(path):
    path.symlink_to(path)


def test_what_is_no_file_or_too_much(gldv2_folder):
    root = gldv2_folder / "train"
    for number, make in enumerate((os.mkfifo, os.mkdir, circle)):
        path = put(root, name_of(number), b"")
        path.unlink()
        make(path)
    put(root, name_of(3), odd_photos.with_frame(jpeg(3), 0xC3))
    put(root, name_of(4), odd_photos.scan_bomb(200))
    put(root, name_of(5), odd_photos.encode(odd_photos.pixels(3, 9)))  # thin, but a photo
    put(root, name_of(6), odd_photos.encode(odd_photos.pixels(60, 50)))
    summary = build_records(settings(gldv2_folder, max_pixels=2999))
    kinds = {kind: count for kind, count in summary["odd_photos"].items() if count}
    assert kinds == {"corrupt": 3, "unsupported": 1, "too_large": 2}
    lines = (gldv2_folder / "records" / "odd_photos.tsv").read_text().splitlines()[1:]
    odd = {line.split("\t")[0]: line.split("\t")[3] for line in lines}
    assert [odd[name_of(number)] for number in range(4)] == [
        *("not a file", "not a file", "Too many levels of symbolic links", "a lossless JPEG"),
    ]
    assert odd[name_of(6)] == "50 x 60 = 0.0 million pixels, more than 0.002999 million"


@pytest.mark.parametrize("own", [True, False])
def test_upright(gldv2_folder, own):
    """Photos of one's own list are turned, GLDv2's are not; the records say which."""
    if own:
        rows = [f"{number}.jpg,a" for number in range(1, 9)]
        (gldv2_folder / "labels.csv").write_text("\n".join(["path,landmark", *rows]))
        for number in range(1, 9):
            data = odd_photos.turned()["JPEG", number]
            (gldv2_folder / f"{number}.jpg").write_bytes(data)
        lists = {"images_dir": "", "train_csv": "", "train_clean_csv": ""}
        common = lists | {
            "labels_csv": str(gldv2_folder / "labels.csv"),
            "validation_fraction": 0.0,
        }
        names = [str(number) for number in range(1, 9)]
    else:
        for number in range(8):
            data = odd_photos.turned()["JPEG", number + 1]
            put(gldv2_folder / "train", name_of(number), data)
        common, names = {"validation_fraction": 0.0}, [name_of(number) for number in range(8)]
    for options, upright in (({}, own), ({"upright": not own}, not own)):
        output = gldv2_folder / f"records{upright}"
        summary = build_records(settings(gldv2_folder, output_dir=str(output), **common, **options))
        assert summary["upright"] is upright and summary["odd_photos"]["exif_rotated"] == 7
        found = read(output, "train")
        for orientation, name in enumerate(names, 1):
            stored = odd_photos.turned()["JPEG", orientation]
            written = found[name][1]
            assert (written == stored) is (orientation == 1 or not upright)
            assert photo_files.read_header(written).orientation == (1 if upright else orientation)
            expected = photo_files.decode(stored, upright=upright).astype(int)
            assert np.abs(photo_files.decode(written, upright=False) - expected).mean() < 6
        detail = (output / "odd_photos.tsv").read_text().splitlines()[1].split("\t")[3]
        assert detail.endswith(", turned") is upright
        index = tfrecord.RecordIndex.open(str(output / "train-*"))
        data = {example.find_int(memoryview(index.read(n)), b"image/upright") for n in range(8)}
        assert data == {1 if upright else None}
    again = r"\(upright was (True\);.*, or give --|False\);.*, or give --no)upright$"
    with pytest.raises(InputError, match=again):
        build_records(settings(gldv2_folder, output_dir=str(output), **common))


def test_unreadable_photo_stops_the_build(gldv2_folder, monkeypatch):
    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(photo_files, "read_file", broken)
    with pytest.raises(InputError, match=r"\.jpg: cannot be read \(Input/output error\)"):
        build_records(settings(gldv2_folder))


def test_no_photo_can_be_used(gldv2_folder):
    with pytest.raises(
        InputError, match=r"none of 16 photos can be used: nowhere/.*: missing, no such"
    ):
        build_records(settings(gldv2_folder, images_dir="nowhere"))
    assert build_records(settings(gldv2_folder))["train"] == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give --train_csv, --train_clean_csv or both"),
        ({"train_csv": "a", "labels_csv": "b"}, "give --train_csv, --train_clean_csv or both"),
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
    assert summary["train"] + summary["validation"] == wanted
    assert summary["left_out"] == 0
