"""The wheel holds all that the commands need: installed in an empty environment, away from here."""

import os
import pathlib
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _run(*words, folder, code=0):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the files that git knows, or would take."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in _run(*listing, folder=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "wheel", "--no-deps", f"--wheel-dir={built}", ".", folder=source)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel, and the packages of this one but for the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "--quiet"]
    _run(*pip, "--disable-pip-version-check", "install", "--no-deps", wheel, folder=folder)
    packages = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    # Only the folder, not the .pth files in it, which lead to the checkout.
    (pathlib.Path(packages) / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"dolg_tf/configs/{path.name}" for path in (ROOT / "configs").glob("*.flags")}
    assert recipes and recipes <= names
    data = {
        "dolg_tf/py.typed",
        "dolg_tf/__init__.pyi",
        "dolg_tf/apps/demo/page.css",
        "dolg_tf/apps/demo/page.js",
        "dolg_tf/apps/demo/tiles.js",
    }
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "dolg_tf").rglob("*.j2")}
    assert data | templates <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dolg_tf").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


@pytest.mark.slow
def test_the_commands_run_where_there_is_nothing_but_the_wheel(environment, tmp_path):
    dolg = environment / "bin" / "dolg"
    where = "import dolg_tf; print(dolg_tf.__file__)"
    assert str(environment) in _run(environment / "bin" / "python", "-c", where, folder=tmp_path)
    small = ["--landmarks=4", "--photos_per_landmark=9", "--max_steps=5", "--batch_size=8"]
    log = _run(dolg, "quickstart", *small, folder=tmp_path)
    quickstart = tmp_path / "runs" / "quickstart"
    assert (quickstart / "report.md").is_file()
    records = f"--train_file_pattern={quickstart}/records/train-*"
    flags = ["--recipe=quickstart", records, "--max_steps=2", "--batch_size=8", "--logdir=run"]
    log += _run(dolg, "train", *flags, folder=tmp_path)
    log += _run(dolg, "export", "--model_dir=run", "--output=model", folder=tmp_path)
    found = next(quickstart.glob("descriptors/trained/*/index/meta.json")).parent
    log += _run(dolg, "index", "build", f"--descriptors={found}", "--output=index", folder=tmp_path)
    assert str(ROOT) not in log and (tmp_path / "index" / "index.faiss").is_file()
    lines = [line for line in log.splitlines() if "cuda" in line.lower() or "oneDNN" in line]
    assert not lines  # TensorFlow's own
