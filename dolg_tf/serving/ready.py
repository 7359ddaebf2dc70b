"""Ready networks as SavedModels, made once and kept in the user's cache."""

import hashlib
import logging
import os
import pathlib
import subprocess
import sys
import time

import dolg_tf
from dolg_tf.stage import files, progress, signals, workshop
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published

log = logging.getLogger(__name__)

SIDE = 320  # longest side of the photos that it is to describe, pixels
SCALES = (1.0, 2**0.5)
PACKAGED = tuple(published.LITE_FILES)  # networks that come as pip packages
_FORM = 2  # of what is exported; 2: with local features. Older ones in a cache are made anew
_HASH = 12  # digits of a hash in a folder's name


def check(name: str, flag: str) -> None:
    """Makes sure that there are such weights, and that their package is installed.

    Args:
      name: as `published.backbone_of` takes it.
      flag: that gave the name, for the error.

    Raises:
      InputError: naming the command that installs the package, if that is missing.
    """
    published.backbone_of(name, flag)
    if name in published.LITE_FILES:
        published.package_file(name, flag)


def place(name: str) -> pathlib.Path:
    """Returns where the SavedModel of published weights is kept, whether it is there or not.

    The folder's name holds a hash of this release and its form of export, the weights and the
    scales.
    """
    weights = name
    if name in published.LITE_FILES:
        weights = files.sha256(published.package_file(name))
    text = "\n".join([dolg_tf.__version__, str(_FORM), name, weights, repr(SCALES)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH]
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "dolg_tf", "ready", f"{name}-{digest}")


def saved_model(name: str) -> pathlib.Path:
    """Returns the SavedModel of published weights; the first time, it is made.

    Another process makes it, so that what TensorFlow takes is free afterwards; several that want
    it at once wait for one.

    Raises:
      InputError: when it cannot be made.
    """
    path = place(name)
    if workshop.recover(path / "saved_model.pb"):
        return path
    with _alone(path):
        if not workshop.recover(path / "saved_model.pb"):
            log.info("preparing the network %s, once ...", name)
            _export(name, path)
    return path


def _alone(path: pathlib.Path):
    """Waits until no other process makes the model, and keeps others waiting."""
    with progress.waiting_for(f"another process that prepares {path.name}"):
        while True:
            try:
                return files.lock(workshop.hidden(path, "lock"), "another process makes it")
            except InputError:
                time.sleep(0.2)


def _export(name: str, path: pathlib.Path) -> None:
    words = [
        *(sys.executable, "-m", "dolg_tf", "export", f"--backbone_weights={name}"),
        *(f"--scales={','.join(map(str, SCALES))}", f"--output={path}", "--overwrite"),
    ]
    environment = {**os.environ, signals.PARENT: str(os.getpid())}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = told[-1].removeprefix("python -m dolg_tf export: error: ")
        raise InputError(f"the network {name} cannot be prepared: {reason}")
