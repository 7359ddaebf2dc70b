"""The records builder cut off: by a kill, Ctrl-C, a full disk, or a second builder.

A photo that is a named pipe stops a builder for good in the middle of a record file, if it is read
like a file; another reader crashes.
"""

import io
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from gldv2_files import files_of, jpeg, name_of, put, read, settings, write_gldv2
from PIL import Image
from waiting import wait_for

from dolg_tf.data.records import build, shards
from dolg_tf.data.records.build import build_records
from dolg_tf.stage.config import InputError


@pytest.fixture
def gldv2_folder(tmp_path):
    write_gldv2(tmp_path)
    return tmp_path


def command(folder, processes):
    options = settings(folder, processes=processes)
    names = ("images_dir", "train_csv", "train_clean_csv", "output_dir", "num_shards", "processes")
    flags = [f"--{name}={getattr(options, name)}" for name in names]
    return [sys.executable, "-m", "dolg_tf", "records", *flags]


def environment(folder, reader):
    """The environment of a builder that reads photos by other code."""
    code = f"import pathlib\nfrom dolg_tf.data import photo_files\n{reader}"
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(code)
    paths = [str(folder / "code"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def jpeg_of_noise():
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=95)
    return out.getvalue()


def gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def stuck(gldv2_folder):
    """A builder that has finished 5 of 6 record files and is stuck in the sixth."""
    path = put(gldv2_folder / "train", name_of(4), b"")
    path.unlink()
    os.mkfifo(path)
    pipe = subprocess.PIPE
    # A test run in the background of a script has Ctrl-C switched off, which children inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    builder = subprocess.Popen(
        command(gldv2_folder, 2),
        start_new_session=True,
        stderr=pipe,
        text=True,
        env=environment(
            gldv2_folder, "photo_files.read_file = lambda path: pathlib.Path(path).read_bytes()"
        ),
    )
    signal.signal(signal.SIGINT, before)
    building = gldv2_folder / "records" / ".building"
    try:
        wait_for(
            lambda: len(list(building.glob("*-of-*.json"))) == 5, "5 files were not written", 60
        )
        wait_for(lambda: list(building.glob(".*-of-*")), "the sixth was not begun", 60)
        yield builder
    finally:
        if not gone(builder.pid):
            os.killpg(builder.pid, signal.SIGKILL)
        builder.communicate()


def mend_and_finish(folder):
    """Puts a photo in the pipe's place, runs the same command again, and compares all files with
    those of a build that nobody cut off."""
    photo = put(folder / "whole", name_of(4), jpeg(4))
    photo.replace(folder / "train" / photo.relative_to(folder / "whole"))
    done = subprocess.run(command(folder, 2), capture_output=True, text=True)
    assert done.returncode == 0 and "5 of 6 record files are kept" in done.stderr, done.stderr
    build_records(settings(folder, output_dir=str(folder / "other")))
    assert files_of(folder / "records") == files_of(folder / "other")
    assert len(files_of(folder / "other")) == 8


def test_killed_builder_and_a_second_one(gldv2_folder, stuck):
    output = gldv2_folder / "records"
    with pytest.raises(InputError, match=r"another process is building records in .*records"):
        build_records(settings(gldv2_folder))
    stuck.send_signal(signal.SIGKILL)
    stuck.wait()
    wait_for(lambda: gone(stuck.pid), "processes outlived the builder", 60)
    assert [path.name for path in output.iterdir()] == [".building"]
    assert len(list((output / ".building").glob(".*-of-*"))) == 1  # the half file
    mend_and_finish(gldv2_folder)


@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupted_builder(gldv2_folder, stuck, whole_group):
    """By Ctrl-C, which reaches every process, or by a signal to the builder alone."""
    (os.killpg if whole_group else os.kill)(stuck.pid, signal.SIGINT)
    assert stuck.wait(20) == 130
    assert stuck.stderr.read().splitlines()[-1] == "python -m dolg_tf records: interrupted"
    wait_for(lambda: gone(stuck.pid), "processes outlived the builder", 60)
    if not whole_group:
        mend_and_finish(gldv2_folder)


def test_killed_worker(stuck):
    children = f"/proc/{stuck.pid}/task/{stuck.pid}/children"
    with open(children) as file:  # noqa: PTH123 - a file of the kernel
        os.kill(max(map(int, file.read().split())), signal.SIGKILL)
    assert stuck.wait(20) == 1
    last = stuck.stderr.read().splitlines()[-1]
    assert "error: a worker process was killed, perhaps for lack of memory" in last
    assert last.endswith(f"; photos at hand: {name_of(4)}")
    wait_for(lambda: gone(stuck.pid), "processes outlived the builder", 60)


_CRASHES = """
import ctypes
read = photo_files.read_file
def crash(path):
    data = read(path)
    return ctypes.string_at(0) if data == b"crash" else data
photo_files.read_file = crash
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_photo_that_kills_its_process_is_passed_over(gldv2_folder, processes):
    for number in (4, 9):
        put(gldv2_folder / "train", name_of(number), b"crash")
    env = environment(gldv2_folder, _CRASHES)
    told = []
    for _ in range(3):
        done = subprocess.run(
            command(gldv2_folder, processes), capture_output=True, text=True, env=env
        )
        told.append(done.stderr)
        if not done.returncode:
            break
    assert done.returncode == 0, told
    if processes == 2:
        error = told[0].splitlines()[-1]
        assert "error: a worker process crashed at " in error and "(Segmentation fault)" in error
        assert error.endswith("; run the same command again: it leaves that out")
        assert name_of(4) in error or name_of(9) in error
    else:
        assert "left out, because the last run died at it: " in told[-1]
    assert "left out: 2 crashed" in told[-1]
    odd = (gldv2_folder / "records" / "odd_photos.tsv").read_text()
    for number in (4, 9):
        assert f"{name_of(number)}.jpg\tcrashed\tits decoder killed the process" in odd
    names = {path.name for path in (gldv2_folder / "records").iterdir()}
    assert len(names) == 6 + 4 and "records.json" in names


def test_full_disk(gldv2_folder):
    whole = build_records(settings(gldv2_folder, output_dir=str(gldv2_folder / "small")))
    assert whole["train"] == 13
    paths = sorted((gldv2_folder / "small").glob("validation-*"))
    (name,) = read(gldv2_folder / "small", paths[-1].name[:-9])  # the last file to be written
    put(gldv2_folder / "train", name, jpeg_of_noise())

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    def build(**options):
        return subprocess.run(command(gldv2_folder, 1), capture_output=True, text=True, **options)

    done = build(preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        f"{paths[-1].name} cannot be written (File too large); finished files are kept: "
        "fix this and run the same command again"
    )
    building = gldv2_folder / "records" / ".building"
    assert len(list(building.glob("*-of-*.json"))) == 5 and not list(building.glob(".*"))
    done = build()
    assert done.returncode == 0 and "5 of 6 record files are kept" in done.stderr
    build_records(settings(gldv2_folder, output_dir=str(gldv2_folder / "other")))
    assert files_of(gldv2_folder / "records") == files_of(gldv2_folder / "other")


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


def test_half_files_of_a_killed_run_are_cleared_away(gldv2_folder, monkeypatch):
    half = gldv2_folder / "records" / ".building" / ".train-00000-of-00003.abc"
    half.mkdir(parents=True)
    (half / "train-00000-of-00003").write_bytes(b"half")

    def sees_none(shard):
        assert not half.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write_shard", sees_none)
    with pytest.raises(KeyboardInterrupt):
        build_records(settings(gldv2_folder))


def test_cut_off_before_the_last_file(gldv2_folder, monkeypatch):
    """When all record files stand under their final names, and records.json does not."""
    write_json = build.files.write_json

    def cut_off(path, value):
        if str(path).endswith("records.json"):
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr(build.files, "write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        build_records(settings(gldv2_folder))
    monkeypatch.undo()
    assert len(list((gldv2_folder / "records").glob("*-of-*"))) == 6
    build_records(settings(gldv2_folder))
    build_records(settings(gldv2_folder, output_dir=str(gldv2_folder / "other")))
    assert files_of(gldv2_folder / "records") == files_of(gldv2_folder / "other")


def test_other_photos_are_another_configuration(gldv2_folder):
    build_records(settings(gldv2_folder))
    for name in ("train.csv", "train_clean.csv"):
        path = gldv2_folder / name
        path.write_text(path.read_text().replace("900", "901"))
        if name == "train.csv":
            build_records(settings(gldv2_folder))  # train_clean.csv alone decides
    with pytest.raises(InputError, match=r"another configuration \(landmarks_sha256 was"):
        build_records(settings(gldv2_folder))


def test_foreign_records_are_not_mixed_in(gldv2_folder):
    (gldv2_folder / "records").mkdir()
    (gldv2_folder / "records" / "train-00000-of-00128").write_bytes(b"")
    with pytest.raises(InputError, match="train-00000-of-00128 is in the way"):
        build_records(settings(gldv2_folder))
    assert len(list((gldv2_folder / "records").iterdir())) == 1
