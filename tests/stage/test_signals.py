"""A command ends at once when it is told to, in one line, and with its parent."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import wrong_paths

from dolg_tf.stage import signals

ROOT = pathlib.Path(__file__).parents[2]
ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def _start(*argv, **kwargs):
    """Returns a process that has begun to handle signals."""
    process = subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As from a terminal, although whoever runs the tests may ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kwargs,
    )
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
        if caught >> signal.SIGTERM - 1 & 1:
            break
        time.sleep(0.001)
    return process


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["-m", "dolg_tf", "summary", "--model_dir={world}/model"], "python -m dolg_tf"),
        (
            ["train.py", "--train_file_pattern={world}/records/train-*", "--logdir={world}/new"],
            "python train.py",
        ),
        (
            ["export/export_saved_model.py", "--model_dir={world}/model", "--output={world}/new"],
            "python export/export_saved_model.py",
        ),
    ],
    ids=["dolg", "train", "export"],
)
def test_a_signal_in_the_first_second_is_one_line(argv, program, tmp_path):
    """All at once: it is the machine's work that takes time, not ours."""
    wrong_paths.make_world(tmp_path)  # right as far as can be seen before TensorFlow is imported
    argv, started = [word.format(world=tmp_path) for word in argv], []
    for number in ENDS:
        for delay in (0.0, 0.03, 0.1, 0.3, 0.8):
            process = _start(*argv)
            time.sleep(delay)
            process.send_signal(number)
            started.append((process, number, delay))
    for process, number, delay in started:
        _, err = process.communicate(timeout=60)
        if process.returncode == 1 and "error: " in err and delay:  # it had ended before
            continue
        assert process.returncode == 128 + number, (delay, err)
        assert err in (f"{program}: {ENDS[number]}\n", f"{program} summary: {ENDS[number]}\n")


# Python sleeps on if a signal comes just before a sleep begins.
SLEEP = "[time.sleep(0.05) for _ in range(600)]"
WORK = """
import sys, time
from dolg_tf.stage import command

def stage():
    try:
        print("working", flush=True)
        {work}
    finally:
        print("tidied up", flush=True)

command.run("work", stage, [], [])
"""


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize(
    "work",
    [
        SLEEP,
        # What libraries make of it.
        f"\n        try: {SLEEP}\n        except BaseException: raise ValueError('import')",
    ],
)
def test_work_tidies_up(number, work):
    process = _start("-c", WORK.replace("{work}", work))
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == "tidied up\n" and err == f"work: {ENDS[number]}\n"
    assert process.returncode == 128 + number


FULL_PIPE = """
import os, sys
from dolg_tf.stage import signals

signals.install("write")
os.write(2, b"up\\n")
while True:
    sys.stdout.write("x" * 100_000)
"""


def test_a_signal_during_a_write_is_one_line():
    """Nobody reads the pipe, so that each signal meets a write."""
    process = _start("-c", FULL_PIPE, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert process.stderr.readline() == "up\n"
    stack = pathlib.Path(f"/proc/{process.pid}/wchan")
    while "pipe" not in stack.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stderr.read() == "write: terminated\n"


def test_an_import_in_the_midst_of_work_is_left_at_once(tmp_path):
    (tmp_path / "heavy.py").write_text("import time\nprint('x', flush=True)\ntime.sleep(60)\n")
    program = WORK.replace("{work}", "import heavy")
    process = _start("-c", program, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert process.stdout.readline() == "working\n" and process.stdout.readline() == "x\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("", "work: interrupted\n", 130)


def test_a_signal_that_is_switched_off_stays_so():
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WORK.replace(
        "{work}", "time.sleep(0.3)"
    )
    process = _start("-c", program)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("tidied up\n", "") and process.returncode == 0


PARENT = f"""
import os, signal, subprocess, sys
from dolg_tf.stage import signals
child = "from dolg_tf.stage import signals; signals.install('x'); print('up', flush=True)"
child += "; import os, time; assert '{signals.PARENT}' not in os.environ; time.sleep(60)"
environment = {{**os.environ, signals.PARENT: str(os.getpid())}}
process = subprocess.Popen([sys.executable, "-c", child], env=environment)
print(process.pid, flush=True)
if sys.argv[1] == "at once":
    os.kill(os.getpid(), signal.SIGKILL)
process.wait()
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_child_ends_with_its_killed_parent(when):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, when], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    int(parent.stdout.readline())
    if when == "later":
        assert parent.stdout.readline() == "up\n"
        parent.kill()
    parent.wait()
    # The child holds the pipe, too.
    parent.stdout.read()
    assert parent.returncode == -signal.SIGKILL


POOL = """
import time
from dolg_tf.stage import processes
from time import sleep

if __name__ == "__main__":
    print("up", flush=True)
    list(processes.run_in_processes(sleep, [0.01, 0.01, *[60] * 9], 2))
"""


def test_worker_processes_end_with_their_killed_parent(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout.readline() == b"up\n"
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while len(children.read_text().split()) < 3:  # with multiprocessing's resource tracker
        time.sleep(0.01)
    started = time.monotonic()
    parent.kill()
    parent.stdout.read()  # until all have closed it
    assert time.monotonic() - started < 20
