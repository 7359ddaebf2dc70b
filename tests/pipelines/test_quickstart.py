"""`make quickstart` as a newcomer runs it, small, interrupted, and then the README's commands.

The interrupted run is a process of its own; all that follows runs in this one.
"""

import importlib
import json
import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import typing

import pytest

from dolg_tf.cli import COMMANDS
from dolg_tf.pipelines.own_photos import command as own_photos
from dolg_tf.pipelines.quickstart import QuickstartConfig, quickstart
from dolg_tf.pipelines.verify import VerifyConfig, verify
from dolg_tf.stage import command

ROOT = pathlib.Path(__file__).parents[2]
# Small enough for a test; everything else is as in the README.
FLAGS = "--landmarks=8 --photos_per_landmark=9 --max_steps=6"


def _make(folder: pathlib.Path, *flags: str, **variables) -> list[str]:
    """The README's command, on the environment that the tests run in."""
    assert shutil.which("make"), "the README's commands need make"
    settings = {"BIN": pathlib.Path(sys.executable).parent, **variables}
    words = [f"{name}={value}" for name, value in settings.items()]
    return ["make", *flags, "-o", ".venv/.installed", "quickstart", *words]


def _dolg(line: str) -> str:
    """Runs `dolg ...` in this process, as the front door would, and returns its log."""
    words = shlex.split(line)
    assert words[0].rpartition("/")[2] == "dolg"
    name = next(name for n in (2, 1) if (name := " ".join(words[1 : n + 1])) in COMMANDS)
    module, function = COMMANDS[name].stage.split(":")
    stage = getattr(importlib.import_module(module), function)
    classes = [hint for key, hint in typing.get_type_hints(stage).items() if key != "return"]
    lines, root = [], logging.getLogger()
    listener, level = logging.Handler(), root.level
    listener.emit = lambda record: lines.append(record.getMessage())
    root.addHandler(listener)
    root.setLevel(logging.INFO)
    try:
        stage(*command.read_flags(words[1 + len(name.split()) :], *classes))
    finally:
        root.removeHandler(listener)
        root.setLevel(level)
    return "\n".join(lines)


def _readme_block(heading: str, language: str) -> str:
    """The first code block of a language under a heading of the README."""
    text = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1]
    return text.split(f"```{language}\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A place that looks like the repository, so that runs/ does not fill the real one."""
    folder, before = tmp_path_factory.mktemp("checkout"), pathlib.Path.cwd()
    for name in ("Makefile", "train.py", "configs", "export", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def finished(checkout):
    """A quickstart that was interrupted in training and run again; its folder and last log."""
    first = subprocess.Popen(
        _make(checkout, FLAGS=FLAGS), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in first.stderr:
        if line.startswith("step 1/"):
            break
    # Whatever ends the quickstart ends the training, since no other process does it.
    started = _processes_below(first.pid)
    assert len([words for words in started if "quickstart" in words]) == 1, started
    assert not [words for words in started if "train" in words], started
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    rest = first.stderr.read()
    assert first.wait() != 0
    assert "the same command continues" in rest and "Traceback" not in rest
    assert not (checkout / "runs/quickstart/report.json").exists()
    return checkout, _dolg(f"dolg quickstart {FLAGS}")


def _processes_below(pid: int) -> list[list[str]]:
    """Returns the words of the commands that a process has started, and those below them."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    words = [pathlib.Path(f"/proc/{each}/cmdline").read_text().split("\0") for each in children]
    return words + [line for each in children for line in _processes_below(int(each))]


def test_an_interrupted_quickstart_goes_on_where_it_stopped(finished):
    folder, log = finished
    assert "continuing runs/quickstart/train at step" in log
    steps = [
        json.loads(line)["step"]
        for line in (folder / "runs/quickstart/train/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps) and steps[-1] == 6


def test_it_leaves_the_report_that_the_formats_promise(finished):
    folder, _ = finished
    report = json.loads((folder / "runs/quickstart/report.json").read_text())
    assert set(report) == {"trained", "untrained", "colour_histogram"}
    for splits in report.values():
        assert set(splits) == {"seen", "unseen"}
        for scores in splits.values():
            assert 0 < scores["medium"]["mAP"] <= 1
            assert scores["protocol"]["query_crop"] == "box"
    hashes = {v: report[v]["seen"]["protocol"]["model_hash"] for v in report}
    assert len(set(hashes.values())) == 3
    page = (folder / "runs/quickstart/report.md").read_text()
    for picture in ("ranked_seen.png", "ranked_unseen.png"):
        assert f"({picture})" in page
        assert (folder / "runs/quickstart" / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_third_run_computes_nothing_again(finished):
    folder, _ = finished
    models = [*(folder / "runs/quickstart/saved_model").rglob("saved_model.pb")]
    before = [(path, path.stat().st_mtime_ns) for path in models]
    log = _dolg(f"dolg quickstart {FLAGS}")
    assert "kept" in log and "photos described" not in log and "exported" not in log
    assert "continuing runs/quickstart/train at step 6 of 6" in log
    assert len(before) == 2 and before == [(path, path.stat().st_mtime_ns) for path in models]


def test_all_that_it_leaves_is_sound(finished):
    folder = finished[0] / "runs/quickstart"
    (trained,) = (folder / "descriptors/trained").iterdir()
    for name, kind in [
        ("records", "records"),
        ("train", "run directory"),
        ("untrained", "model directory"),
        ("saved_model/trained", "SavedModel"),
        (trained / "seen", "descriptor set"),
        ("descriptors/colour_histogram/index", "descriptor set"),
    ]:
        found = verify(VerifyConfig(path=str(folder / name)))
        assert found.kind == kind
    assert found.facts[0].endswith("of width 512")


def test_the_commands_that_it_shows_find_all_done(finished):
    """Each is what the step does alone: it answers that the step's output is up to date."""
    shown = [line[2:] for line in finished[1].splitlines() if line.startswith("$ dolg ")]
    assert {line.split()[1] for line in shown} == {
        *("draw", "records", "train", "export", "extract", "colour-histogram", "evaluate")
    }
    for line in shown:
        if line.split()[1] in ("train", "extract", "colour-histogram", "evaluate"):
            log = _dolg(line)
            assert "photos described" not in log
            assert line.split()[1] == "evaluate" or "kept" in log or "at step 6 of 6" in log


def test_the_readmes_commands_run(finished):
    folder, _ = finished
    block = _readme_block("Stage by stage", "bash").replace("\\\n", " ")
    commands = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert len(commands) >= 5
    for line in commands:
        _dolg(line)
    report = json.loads((folder / "runs/mine/report.json").read_text())
    assert report["medium"]["mAP"] > 0
    shutil.copy(next((folder / "runs/quickstart/photos/test").rglob("*.jpg")), folder / "photo.jpg")
    found = {}
    exec(_readme_block("Five lines of Python", "python"), found)
    assert found["descriptors"].shape == (1, 512) and found["rows"].shape == (1, 10)


def test_own_photos_are_searched(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(own_photos, "search", asked.append)
    assert quickstart(QuickstartConfig(photos=str(tmp_path))) is None
    quickstart(QuickstartConfig(photos=str(tmp_path), output="kept"))
    assert [settings.photos for settings in asked] == [(str(tmp_path),)] * 2
    assert [settings.folder for settings in asked] == ["", "kept"]


def test_make_searches_the_photos_that_it_is_given(tmp_path):
    dolg = tmp_path / "dolg"
    dolg.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    dolg.chmod(0o755)
    given = {"BIN": tmp_path, "PHOTOS": "Anna's photos", "QUERY": "a b.jpg"}
    command = [*_make(tmp_path, **given), "-s", "-f", ROOT / "Makefile"]
    command[1:1] = ["-o", ".venv/.installed-search"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "<search><Anna's photos><--query=a b.jpg>"


def test_make_asks_which_photos_before_it_installs(tmp_path):
    command = ["make", "-s", "-f", ROOT / "Makefile", "search"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and done.stdout == "which photos? make search PHOTOS=folder\n"
    assert not [*tmp_path.iterdir()]
