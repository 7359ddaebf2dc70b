"""Kills a writer before each of its steps and looks at what is left.

In a process of its own, since each step is a fork, and forking TensorFlow takes long.

    python kill_at_steps.py FOLDER exchanged|renamed|first
"""

import os
import pathlib
import signal
import sys

from dolg_tf.stage import files, workshop

_STEPS = {files.__file__, workshop.__file__}


def killed_at(step, work, module_files=_STEPS):
    """Runs `work` in a process that is killed before its `step`th line in some modules.

    Returns whether it was.
    """
    child = os.fork()
    if not child:
        left = step

        def count(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in module_files:
                return None
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def write(path, text):
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        for name in ("a", "b"):
            (temporary / name).write_text(text)


def contents(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def replace_a_folder(folder: pathlib.Path, exchanging: bool) -> None:
    """Of a folder that is replaced, either the old one or the new one is found, whole."""
    if not exchanging:
        workshop.exchange = lambda one, other: False
    path, step, lost, seen = folder / "index", 0, 0, set()
    write(path, "old")
    while killed_at(step, lambda: write(path, "new")):
        lost += not path.exists()
        if step % 2:  # half of them are opened by a reader first, half by a writer
            assert workshop.recover(path)
            found = contents(path)
            assert found in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})
            seen.add(found["a"])
        write(path, "old")
        assert [p.name for p in folder.iterdir()] == ["index"]
        step += 3 if exchanging else 1  # all steps where the path is lost between two
    assert step > 50 and seen == {"old", "new"}
    assert (lost > 0) == (not exchanging)


def write_a_file(folder: pathlib.Path) -> None:
    """Of a first write, nothing is left that looks whole but is not."""
    path, step = folder / "set.json", 0
    while killed_at(step, lambda: files.write_json(path, {"whole": True})):
        if path.exists():
            assert files.read_json(path) == {"whole": True}
            path.unlink()
        step += 3
    path.unlink()
    files.write_json(path, {})
    assert [p.name for p in folder.iterdir()] == ["set.json"]


if __name__ == "__main__":
    os.fsync = lambda file: None  # waits for no disk
    where, what = pathlib.Path(sys.argv[1]), sys.argv[2]
    if what == "first":
        write_a_file(where)
    else:
        replace_a_folder(where, what == "exchanged")
