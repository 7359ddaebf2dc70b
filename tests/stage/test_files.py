"""Files are whole or not there."""

import errno
import os
import re
import resource
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "value.txt"
    files.write_text(path, "before")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["value.txt"]


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        with files.atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_does_not_make_way_for_a_file(tmp_path):
    files.write_text(tmp_path / "folder/kept.txt", "kept")
    with pytest.raises(InputError, match="folder is a folder, which a file must not replace"):
        files.write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder/kept.txt").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_folders_on_the_way_are_made(tmp_path):
    files.write_json(tmp_path / "a" / "b" / "value.json", {"x": 1})
    assert files.read_json(tmp_path / "a" / "b" / "value.json") == {"x": 1}


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "value.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: not JSON"):
        files.read_json(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        files.read_json(tmp_path / "none.json")


def test_json_tells_of_paths_that_are_not_utf_8(tmp_path):
    value = {"root": os.fsdecode(b"/tmp/caf\xe9/\xff\xfe"), "name": "Köln \U0001f5fc"}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json") == value
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    files.write_text(tmp_path / "flags.txt", f"--root={value['root']}\n")
    assert (tmp_path / "flags.txt").read_bytes() == b"--root=/tmp/caf\xe9/\xff\xfe\n"
    assert "Köln \U0001f5fc" in text and r"/tmp/caf\udce9/" in text


def test_another_format_version_is_refused(tmp_path):
    files.write_json(tmp_path / "value.json", {"format_version": 2})
    with pytest.raises(InputError, match="format_version is 2, this release reads 1"):
        files.read_json(tmp_path / "value.json", 1)
    files.write_json(tmp_path / "list.json", [1])
    with pytest.raises(InputError, match="format_version is None"):
        files.read_json(tmp_path / "list.json", 1)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd"])
def test_paths_stay_in_their_folder(tmp_path, name):
    with pytest.raises(InputError, match="leads out of"):
        files.inside(tmp_path, name)
    assert files.inside(tmp_path, "a/b.jpg") == tmp_path / "a/b.jpg"


def test_links_that_lead_out_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of"):
        files.inside(tmp_path / "folder", "link/secret")


def test_only_an_output_of_its_own_kind_is_replaced(tmp_path):
    files.check_output(tmp_path / "none", overwrite=False)
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    (mine / "config.json").touch()
    files.check_output(mine, True, "config.json")
    files.check_output(mine / "config.json", overwrite=True)
    with pytest.raises(InputError, match="exists; give --overwrite"):
        files.check_output(mine, False, "config.json")
    with pytest.raises(InputError, match="directory of something else"):
        files.check_output(other, True, "config.json")
    with pytest.raises(InputError, match="mine is a directory; give a file as --output"):
        files.check_output(mine, True)


def test_a_link_to_itself_is_inside_of_nothing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: a link that leads nowhere"):
        files.inside(tmp_path, "loop")


def test_a_pipe_or_a_folder_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}: not a file"):
            files.read_json(tmp_path / name)


# --- full disks ----------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


@pytest.fixture
def small_disk():
    """No file has room for more than 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["a"] = NOISE


def _write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", NOISE.tobytes())


WRITERS = {
    "x.txt": lambda path: path.write_bytes(NOISE.tobytes()),
    "x.npy": lambda path: np.save(path, NOISE),  # tells no reason
    "x.npz": lambda path: np.savez(path, a=NOISE),
    "x.webp": lambda path: Image.fromarray(NOISE).save(path, quality=99),
    "x.h5": _write_hdf5,  # tells it in words
    "x.zip": _write_zip,
    "x.safetensors": lambda path: save_file({"a": NOISE}, path),
    "x.reserved": lambda path: files.reserve(path, NOISE.nbytes),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_meets_a_full_disk_the_output_is_named(tmp_path, small_disk, name):
    files.write_text(tmp_path / name, "before")
    with pytest.raises(files.FullDisk) as caught, files.atomic_path(tmp_path / name) as temporary:
        WRITERS[name](temporary)
    assert caught.value.filename == str(tmp_path / name) and caught.value.strerror
    assert (tmp_path / name).read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_inside_a_folder_names_the_folder(tmp_path, small_disk):
    with pytest.raises(files.FullDisk) as caught, files.atomic_path(tmp_path / "set") as folder:
        folder.mkdir()
        files.write_text(folder / "ids.txt", "x" * 100_000)
    assert caught.value.filename == str(tmp_path / "set") and not list(tmp_path.iterdir())


def test_what_only_sounds_like_a_full_disk_is_none(tmp_path):
    for error in (InputError("x: No space left on device"), OSError("1 written"), KeyError("2")):
        with pytest.raises(type(error)) as caught, files.naming(tmp_path):
            raise error
        assert caught.value is error
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert files.full_disk(OSError(number, "x")) == number
