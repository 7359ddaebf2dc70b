"""The verifier: each fault is found, named and counted, and sound records have none."""

import io
import subprocess
import sys

import numpy as np
import pytest
from gldv2_files import jpeg, settings, write_gldv2
from odd_photos import scan_bomb
from PIL import Image

from dolg_tf.data.records import tfrecord
from dolg_tf.data.records.build import build_records
from dolg_tf.data.records.classes import read_class_counts
from dolg_tf.data.records.verify import VerifyConfig, verify_records
from dolg_tf.stage.config import InputError


def example(number, label=0, **changes):
    values = {"jpeg": jpeg(number), "image_id": f"id{number}", "height": 24, "width": 30}
    return tfrecord.encode(**values | changes, label=label)


def with_upright(value):
    data = example(1, upright=True)
    true, other = (b"\x1a\x03\x0a\x01" + bytes([number]) for number in (1, value))
    at = data.index(true, data.index(b"image/upright"))
    return data[:at] + other + data[at + 5 :]


def faults_of(folder, **options):
    """Returns (file, record, id, reason) of each fault."""
    listed = folder / "faults.tsv"
    options = {"file_pattern": f"{folder}/t*-of-*", "processes": 1} | options
    with pytest.raises(InputError) as error:
        verify_records(VerifyConfig(faults_tsv=str(listed), **options))
    header, *lines = listed.read_text().splitlines()
    assert header == "file\trecord\tid\treason" and str(error.value).startswith(f"{len(lines)} ")
    cells = [line.split("\t") for line in lines]
    return {(file[len(str(folder)) + 1 :], int(n), name, why) for file, n, name, why in cells}


def test_sound_records(tmp_path, caplog):
    caplog.set_level("INFO")
    write_gldv2(tmp_path)
    build_records(settings(tmp_path))
    train = f"{tmp_path}/records/train-*"
    result = verify_records(VerifyConfig(file_pattern=train, processes=2))
    assert result == {"files": 3, "records": 13, "classes": 3}
    assert "13 records in 3 files, 3 of 3 classes, 0 faults" in caplog.text
    expected = (tmp_path / "records" / "class_counts.csv").read_text()
    (tmp_path / "records" / "class_counts.csv").unlink()
    path = str(tmp_path / "records" / "class_counts.csv")
    verify_records(VerifyConfig(file_pattern=train, class_counts_csv=path, processes=1))
    assert (tmp_path / "records" / "class_counts.csv").read_text() == expected
    assert read_class_counts(train, 3).tolist() == [1, 4, 8]


def png(number):
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(number))).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("wrong", "reasons"),
    [
        (example(1, label=3), {"label 3 must be 0 to 2"}),
        (example(1, label=None), {"no image/class/label"}),
        (
            example(1, height=30, width=24),
            {
                "image/height is 30, but the photo's is 24",
                "image/width is 24, but the photo's is 30",
            },
        ),
        (example(1, jpeg=jpeg(1, "L")), {"the JPEG is L, not RGB"}),
        (example(1, jpeg=jpeg(1, "CMYK")), {"the JPEG is CMYK, not RGB"}),
        (example(1, jpeg=png(1)), {"image/encoded is PNG, not JPEG"}),
        (example(1, jpeg=b"<html>"), {"image/encoded is not a picture"}),
        (
            example(1, jpeg=jpeg(1)[:-60]),
            {"the photo cannot be decoded: it ends before its end marker"},
        ),
        (
            example(1).replace(b"\x0a\x03RGB", b"\x0a\x03BGR"),
            {"image/colorspace is b'BGR', not b'RGB'"},
        ),
        (
            example(1).replace(b"\x0a\x04JPEG", b"\x0a\x04WEBP"),
            {"image/format is b'WEBP', not b'JPEG'"},
        ),
        (example(1).replace(b"image/channels", b"image/chonnels"), {"no image/channels"}),
        (example(1).replace(b"image/height", b"image/length"), {"no image/height"}),
        (with_upright(2), {"image/upright is 2, not 0 or 1"}),
        (
            example(1, jpeg=scan_bomb(99, 24, 30)),
            {"the photo cannot be decoded: more than 32 scans"},
        ),
        (example(1).replace(b"image/encoded", b"image/uncoded"), {"no image/encoded"}),
        (example(1)[:-3], {"not a tf.train.Example: damaged, or cut short"}),
        (b"abc", {"not a tf.train.Example: damaged, or cut short"}),
    ],
)
def test_faulty_record(tmp_path, wrong, reasons):
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [example(0), wrong, example(2, 2)])
    found = faults_of(tmp_path, num_classes=3)
    assert {(file, number) for file, number, _, _ in found} == {("train-00000-of-00001", 1)}
    whys = {reason.split(" (")[0] for *_, reason in found}
    assert whys == reasons
    if b"id1" in wrong and "Example" not in str(reasons):
        assert {name for _, _, name, _ in found} == {"id1"}


def test_negative_label(tmp_path):
    data = example(1, label=-1)
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [data])
    assert {why for *_, why in faults_of(tmp_path)} == {"label -1 must be at least 0"}


def test_id_that_comes_twice(tmp_path):
    for shard, numbers in enumerate([[0, 1, 2], [3, 1], [4, 5, 1]]):
        examples = [example(number) for number in numbers]
        tfrecord.write_shard(tmp_path / f"train-{shard:05d}-of-00003", examples)
    where = f"{tmp_path}/train-00000-of-00003, record 1"
    for processes in (1, 2):
        assert faults_of(tmp_path, processes=processes) == {
            ("train-00001-of-00003", 1, "id1", f"the same image/id as {where}"),
            ("train-00002-of-00003", 2, "id1", f"the same image/id as {where}"),
        }


def test_damaged_files(tmp_path):
    names = [f"train-{shard:05d}-of-00006" for shard in range(6)]
    for shard, name in enumerate(names):
        examples = [example(3 * shard + i) for i in range(3)]
        tfrecord.write_shard(tmp_path / name, examples)

    def change(shard, place):
        """In the second record, counted from its begin."""
        path = tmp_path / names[shard]
        data = bytearray(path.read_bytes())
        data[len(example(3 * shard)) + 16 + place] ^= 1
        path.write_bytes(data)

    change(1, 200)  # in the payload
    change(2, 3)  # in the length
    for shard, cut in ((3, 5), (4, 2 * len(example(14)))):
        path = tmp_path / names[shard]
        path.write_bytes(path.read_bytes()[:-cut])
    (tmp_path / names[5]).write_bytes(b"")
    assert faults_of(tmp_path) == {
        (names[1], 1, "", "the checksum is wrong"),
        (
            names[2],
            1,
            "",
            "its length is damaged, or this is not a TFRecord file; nothing after it is read",
        ),
        (names[3], 2, "", "the file ends inside the record"),
        (names[4], 1, "", "the file ends inside the record"),
        (names[5], 0, "", "the file has no records"),
    }


def test_test_records_need_no_label(tmp_path, caplog):
    caplog.set_level("INFO")
    tfrecord.write_shard(tmp_path / "test-00000-of-00001", [example(0, None), example(1, None)])
    result = verify_records(VerifyConfig(file_pattern=f"{tmp_path}/test-*", processes=1))
    assert result == {"files": 1, "records": 2, "classes": 0}
    assert "2 records in 1 files, no labels needed, 0 faults" in caplog.text


def test_counts_leave_out_labels_that_are_out_of_range(tmp_path):
    examples = [example(0, 1), example(1, 5), example(2, 1), example(3, 0, jpeg=b"<html>")]
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", examples)
    path = tmp_path / "counts.csv"
    faults_of(tmp_path, num_classes=3, class_counts_csv=str(path))
    assert path.read_text() == "label,photos\n0,1\n1,2\n2,0\n"


def test_command(tmp_path):
    """One line for each fault up to twenty, then how many there are, and exit code 1."""
    examples = [example(number, 7) for number in range(25)]
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", examples)
    command = [
        sys.executable,
        "-m",
        "dolg_tf",
        "verify",
        f"--file_pattern={tmp_path}/train-*",
    ]
    done = subprocess.run([*command, "--num_classes=7"], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 22
    assert lines[19].endswith("record 19 (image id19): label 7 must be 0 to 6")
    assert "25 records in 1 files, 0 of 7 classes, 25 faults" in lines[20]
    assert "error: 25 faults in 1 of 1 files (--faults_tsv=FILE lists them all)" in lines[21]
    program = "import sys, dolg_tf.data.records.verify; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_wrong_options(tmp_path):
    with pytest.raises(InputError, match=r"no file matches .*`dolg records`"):
        verify_records(VerifyConfig(file_pattern=f"{tmp_path}/train-*"))
    with pytest.raises(InputError, match="--num_classes=-1 must be"):
        VerifyConfig(file_pattern="x", num_classes=-1)
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [example(0)])
    options = {"file_pattern": f"{tmp_path}/train-*", "class_counts_csv": "counts.csv"}
    with pytest.raises(InputError, match=r"--class_counts_csv=counts\.csv needs labels, and"):
        verify_records(VerifyConfig(**options))


def test_photo_that_is_large_enough_to_be_scaled_down(tmp_path):
    """Damage in the last rows is found although the photo is decoded at an eighth of its size."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG")
    size = {"height": 200, "width": 300}
    examples = [example(0, jpeg=out.getvalue(), **size)]
    examples += [example(1, jpeg=out.getvalue()[:-500], **size)]
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", examples)
    assert {(number, why.split(" (")[0]) for _, number, _, why in faults_of(tmp_path)} == {
        (1, "the photo cannot be decoded: it ends before its end marker")
    }
