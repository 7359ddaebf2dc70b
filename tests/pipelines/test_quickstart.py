"""`make quickstart` as a newcomer runs it, small, interrupted, and then the README's commands."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from dolg_tf.pipelines.own_photos import command as own_photos
from dolg_tf.pipelines.quickstart import QuickstartConfig, quickstart
from dolg_tf.pipelines.verify import VerifyConfig, verify

ROOT = pathlib.Path(__file__).parents[2]
# Small enough for a test; everything else is as in the README.
FLAGS = "--landmarks=8 --photos_per_landmark=9 --max_steps=6"


def _checkout(folder: pathlib.Path) -> pathlib.Path:
    """A place that looks like the repository, so that runs/ does not fill the real one."""
    for name in ("Makefile", "train.py", "configs", "export", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _make(folder: pathlib.Path, **variables) -> list[str]:
    """The README's command, on the environment that the tests run in."""
    assert shutil.which("make"), "the README's commands need make"
    settings = {"BIN": pathlib.Path(sys.executable).parent, **variables}
    words = [f"{name}={value}" for name, value in settings.items()]
    return ["make", "-o", ".venv/.installed", "quickstart", *words]


def _run(command: list[str], folder: pathlib.Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def _readme_block(heading: str, language: str) -> str:
    """The first code block of a language under a heading of the README."""
    text = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1]
    return text.split(f"```{language}\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart that was interrupted in training and run again; its folder and last log."""
    folder = _checkout(tmp_path_factory.mktemp("checkout"))
    command = _make(folder, FLAGS=FLAGS)
    first = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in first.stderr:
        if line.startswith("step 1/"):
            os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
            break
    rest = first.stderr.read()
    assert first.wait() != 0
    assert "the same command continues" in rest
    assert not (folder / "runs/quickstart/report.json").exists()
    return folder, _run(command, folder)


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
    log = _run(_make(folder, FLAGS=FLAGS), folder)
    assert "kept" in log and "photos described" not in log
    assert "continuing runs/quickstart/train at step 6 of 6" in log


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


def test_the_readmes_commands_run(finished):
    folder, _ = finished
    block = _readme_block("Stage by stage", "bash").replace("\\\n", " ")
    commands = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "dolg"
        _run([sys.executable, "-m", "dolg_tf", *words[1:]], folder)
    report = json.loads((folder / "runs/mine/report.json").read_text())
    assert report["medium"]["mAP"] > 0
    shutil.copy(next((folder / "runs/quickstart/photos/test").rglob("*.jpg")), folder / "photo.jpg")
    code = _readme_block("Five lines of Python", "python")
    code += "\nassert descriptors.shape == (1, 512) and rows.shape == (1, 10)"
    _run([sys.executable, "-c", code], folder)


def test_own_photos_are_searched(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(own_photos, "search", asked.append)
    assert quickstart(QuickstartConfig(photos=str(tmp_path))) is None
    assert [settings.photos for settings in asked] == [(str(tmp_path),)]


def test_make_searches_the_photos_that_it_is_given(tmp_path):
    command = [*_make(tmp_path, PHOTOS="my photos", QUERY="a.jpg"), "-n", "-f", ROOT / "Makefile"]
    command[1:1] = ["-o", ".venv/.installed-search"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (
        f"{pathlib.Path(sys.executable).parent}/dolg search 'my photos' --query='a.jpg'"
        in done.stdout
    )
    assert "dolg quickstart" not in done.stdout


def test_a_killed_quickstart_takes_its_training_with_it(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "runs/quickstart/photos", tmp_path / "quickstart/photos")
    command = [sys.executable, "-m", "dolg_tf", "quickstart", f"--output={tmp_path / 'quickstart'}"]
    parent = subprocess.Popen(
        [*command, *FLAGS.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    for line in parent.stderr:
        if line.startswith("step 1/"):
            break
    assert children.read_text().split()
    parent.kill()
    parent.stderr.read()  # until the training has closed it, too
    checkpoints = tmp_path / "quickstart/train/checkpoints"
    assert not checkpoints.exists() or not any(checkpoints.iterdir())  # it had no time to save
