"""Outputs outlast a kill at any step; what killed commands leave is cleared, and nothing else."""

import ctypes
import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import kill_at_steps
import pytest
from kill_at_steps import contents as _contents
from kill_at_steps import write as _write

from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch):
    """Waits for no disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.parametrize("what", ["exchanged", "renamed", "first"])
def test_an_output_outlives_a_kill_at_every_step(tmp_path, what):
    """A folder that is exchanged with the old one, or renamed where that fails; a first write."""
    done = subprocess.run(
        [sys.executable, kill_at_steps.__file__, tmp_path, what],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_readers_find_what_a_killed_process_had_moved_aside(tmp_path):
    (tmp_path / ".index.dolg-2/old/index").mkdir(parents=True)
    (tmp_path / ".index.dolg-2/lock").touch()
    (tmp_path / ".index.dolg-2/old/index/meta.json").write_text('{"rows": 3}')
    assert files.read_json(tmp_path / "index/meta.json") == {"rows": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_what_a_living_process_works_on_stays(tmp_path):
    path = tmp_path / "index"
    with files.atomic_path(path) as slow:
        slow.mkdir()
        (slow / "a").write_text("slow")
        _write(path, "quick")
        assert _contents(path) == {"a": "quick", "b": "quick"}
        assert (slow / "a").read_text() == "slow"
    assert _contents(path) == {"a": "slow"}
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_many_writers_at_once_are_whole_and_too_many_are_told(tmp_path, quick):
    path, faults = tmp_path / "index", []

    def write(text):
        try:
            for _ in range(5):
                _write(path, text)
        except InputError as error:
            faults.append(str(error))

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found = _contents(path)
    assert found["a"] == found["b"] and [p.name for p in tmp_path.iterdir()] == ["index"]
    assert all("8 processes are writing" in fault for fault in faults)


@pytest.fixture
def shared():
    """A folder that all users may write, where this one is not root."""
    mine = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        path.chmod(0o777)
        yield path
        os.seteuid(mine)
        for theirs in path.iterdir():
            if theirs.is_dir():
                theirs.chmod(0o700)


def test_the_workshop_of_another_user_is_passed_over(shared):
    theirs = shared / ".index.dolg-0"
    (theirs / "old/index").mkdir(parents=True)
    (theirs / "lock").touch()
    theirs.chmod(0)
    if not os.geteuid():
        os.seteuid(65534)
    assert not workshop.recover(shared / "index")
    _write(shared / "index", "mine")
    _write(shared / "index", "again")
    assert sorted(path.name for path in shared.iterdir()) == [theirs.name, "index"]


def test_without_locks_what_killed_processes_leave_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "index"
    for number in range(8):
        _write(path, "whole")
        (workshop.hidden(path, f"dolg-{number}") / "new").mkdir(parents=True)
        (workshop.hidden(path, f"dolg-{number}") / "lock").touch()
    with pytest.raises(
        InputError, match=r"delete the folders .*/\.index\.dolg-0 to \.index\.dolg-7"
    ):
        _write(path, "more")
    assert _contents(path)["a"] == "whole"


def test_nothing_stays_where_a_removed_file_stays_until_it_is_closed(tmp_path, monkeypatch):
    """As on NFS."""
    unlink, close, kept = pathlib.Path.unlink, os.close, []

    def rename(self, *args, **kwargs):
        if self.name == "lock":
            kept.append(self.rename(self.with_name(".nfs01")))
        else:
            unlink(self, *args, **kwargs)

    def close_and_remove(number):
        close(number)
        while kept:
            unlink(kept.pop())

    monkeypatch.setattr(pathlib.Path, "unlink", rename)
    monkeypatch.setattr(os, "close", close_and_remove)
    _write(tmp_path / "index", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS])
def test_file_systems_that_exchange_nothing_move_the_old_folder_aside(
    tmp_path, monkeypatch, number
):
    class Library:
        def __init__(self, *_, **__):
            pass

        def renameat2(self, *_):
            ctypes.set_errno(number)
            return -1

    _write(tmp_path / "index", "old")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    _write(tmp_path / "index", "new")
    assert _contents(tmp_path / "index")["a"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_what_is_not_ours_stays(tmp_path):
    mine = tmp_path / ".out.dolg-0"
    mine.mkdir()
    (mine / "letter").write_text("dear")
    (tmp_path / ".out.dolg-1").symlink_to(mine)
    (tmp_path / ".out.dolg-2").write_text("file")
    (tmp_path / ".out.x1y2z3").mkdir()
    files.write_text(tmp_path / "out", "text")
    assert (mine / "letter").read_text() == "dear" and len(list(tmp_path.iterdir())) == 5


def test_a_name_of_255_bytes(tmp_path):
    for name in ("é" * 127, "é" * 126 + "xyz"):
        path = tmp_path / name
        _write(path, "old")
        _write(path, "new")
        assert _contents(path)["a"] == "new" and workshop.hidden(path, "lock").name.endswith("lock")
        assert len(os.fsencode(workshop.hidden(path, "lock").name)) <= 255
    assert len(list(tmp_path.iterdir())) == 2


def test_links_and_slashes(tmp_path):
    _write(tmp_path / "disk/index", "old")
    for name in ("index", "new"):  # "new" is not there yet
        (tmp_path / f"{name}.link").symlink_to(tmp_path / "disk" / name)
        _write(f"{tmp_path}/{name}.link/", "new")
        assert (tmp_path / f"{name}.link").is_symlink()
        assert _contents(tmp_path / "disk" / name)["a"] == "new"
    files.write_text(tmp_path / "text", "old")
    (tmp_path / "text.link").symlink_to("text")
    files.write_text(tmp_path / "text.link", "new")
    assert (tmp_path / "text").read_text() == "new" and (tmp_path / "text.link").is_symlink()
    for target in ("unmounted/index", "lost.link"):
        (tmp_path / "lost.link").symlink_to(target)
        with pytest.raises(InputError, match=r"lost\.link is a link to .*make it first"):
            files.write_text(tmp_path / "lost.link", "text")
        (tmp_path / "lost.link").unlink()


def test_devices_pipes_and_sockets_are_not_replaced(tmp_path):
    pipe, device = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    device.symlink_to("/dev/null")
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    for path in (pipe, device):
        files.check_output(path, overwrite=False)
        files.write_text(path, "text")
    reader.join()
    assert got == ["text"] and pipe.is_fifo() and device.is_char_device()
    for path in (pipe, device):
        with pytest.raises(InputError, match="device or a pipe, which cannot hold a folder"):
            files.check_output(path, True, "meta.json")
    block = pathlib.Path("/dev/vda")
    if block.is_block_device():
        with pytest.raises(InputError, match="a socket or a disk"):
            files.check_output(block, overwrite=True)
    files.write_text(tmp_path / "file", "text")
    with pytest.raises(InputError, match="is a file, which --overwrite does not replace"):
        files.check_output(tmp_path / "file", True, "meta.json")
    with pytest.raises(InputError, match="is a file, which a folder must not replace"):
        _write(tmp_path / "file", "text")


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_is_written_into(tmp_path, path, into):
    program = (
        "from dolg_tf.stage import files; import sys; files.check_output(sys.argv[1], False); "
        "print('first', flush=True); files.write_json(sys.argv[1], 2)"
    )
    run = {"cwd": pathlib.Path(__file__).parents[2], "check": True}
    if into == "pipe":
        out = subprocess.run([sys.executable, "-c", program, path], capture_output=True, **run)
        assert out.stdout == b"first\n2\n"
        return
    with (tmp_path / "out.txt").open("w") as file:
        subprocess.run([sys.executable, "-c", program, path], stdout=file, **run)
    assert (tmp_path / "out.txt").read_text() == "first\n2\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_all_is_on_the_disk_before_it_is_in_place(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(number):
        number = getattr(number, "fileno", lambda: number)()
        link = pathlib.Path(f"/proc/self/fd/{number}").readlink()
        synced.append((link.name, (tmp_path / "index").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    _write(tmp_path / "index", "text")
    assert sorted(synced[:2]) == [("a", False), ("b", False)]
    assert synced[2:] == [("index", False), (tmp_path.name, True)]


def test_a_file_in_a_folder_that_is_being_made_is_waited_for_once(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with files.atomic_path(tmp_path / "index") as folder:
        folder.mkdir()
        files.write_json(folder / "a/meta.json", 1)
        files.write_json(folder / "a/meta.json", 2)
        synced.clear()
        files.write_text(folder / "ids.txt", "x")
        assert not synced
    assert len(synced) == 5  # two files, two folders, and the folder that holds them
    assert files.read_json(tmp_path / "index/a/meta.json") == 2


def test_thousands_of_files_are_waited_for_together(tmp_path, monkeypatch):
    synced, waiting = [], []

    def wait(number):
        waiting.append(1)
        synced.append((getattr(number, "name", None), len(waiting)))
        time.sleep(0.0005)
        waiting.pop()

    monkeypatch.setattr(os, "fsync", wait)
    with files.atomic_path(tmp_path / "many") as folder:
        folder.mkdir()
        for number in range(3000):
            (folder / str(number)).touch()
    assert len({name for name, _ in synced if name}) == 3000
    assert max(together for _, together in synced) > 4


def test_a_folder_that_may_not_be_written_is_told_by_the_name_of_the_output(tmp_path, monkeypatch):
    mkdir = pathlib.Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(PermissionError) as caught:
        files.write_text(tmp_path / "out.json", "text")
    assert caught.value.filename == str(tmp_path / "out.json")
