"""The model directory: the only reader and writer of a network on disk.

config.json       {format_version, model, preprocessing, provenance}
model.weights.h5  every variable of the network; the class head is not part of it
"""

import pathlib

import h5py
import keras
import numpy as np

from dolg_tf import config as configs
from dolg_tf import files
from dolg_tf.config import DolgConfig, InputError
from dolg_tf.modeling.dolg import build_dolg

FORMAT_VERSION = 1
_WEIGHTS = "model.weights.h5"


def save_dolg(network: keras.Model, config: DolgConfig, path: files.Path, provenance: dict) -> None:
    """Writes a model directory, whole or not at all, in place of one that stood there.

    Args:
      network: from `build_dolg(config)`.
      config: its configuration.
      path: the directory.
      provenance: where the weights come from, as plain JSON values.
    """
    model = configs.to_dict(config)
    preprocessing = model.pop("preprocessing")
    with files.atomic_path(path) as folder:
        folder.mkdir()
        network.save_weights(folder / _WEIGHTS)
        files.write_json(
            folder / "config.json",
            {
                "format_version": FORMAT_VERSION,
                "model": model,
                "preprocessing": preprocessing,
                "provenance": provenance,
            },
        )


def load_dolg(path: files.Path, checkpoint: str = "latest") -> tuple[keras.Model, DolgConfig, dict]:
    """Builds the network that a directory holds, in float32.

    Args:
      path: a model directory, or a run directory of training.
      checkpoint: "latest" or "best", for a run directory.

    Returns:
      The network, its configuration and its provenance.

    Raises:
      InputError: when there is no such directory, its format is another, or its weights do not
        fit its configuration.
    """
    path = pathlib.Path(path)
    config, values = read_config(path)
    network = build_dolg(config)
    if "training" in values:
        return network, config, _restore(network, path, checkpoint)
    weights = path / _WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; {path} is no complete model directory")
    try:
        # Keras passes over arrays that a network has no use for: count them.
        stored, needed = _count_arrays(weights), len(network.weights)
        if stored != needed:
            raise ValueError(f"{stored} arrays for {needed} variables")
        network.load_weights(weights)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{weights} does not fit {path / 'config.json'}: {error}") from error
    return network, config, values["provenance"]


def read_config(path: files.Path) -> tuple[DolgConfig, dict]:
    """Returns the network's configuration, and all of config.json, of a model or run directory.

    Raises:
      InputError: when there is none, or its format is another.
    """
    source = pathlib.Path(path) / "config.json"
    values = files.read_json(source, FORMAT_VERSION)
    run = "training" in values
    for key in ("model", "data") if run else ("model", "preprocessing", "provenance"):
        if key not in values:
            raise InputError(f"{source} has no {key!r}")
    model = dict(values["model"])
    if not run:
        model["preprocessing"] = values["preprocessing"]
    return configs.from_dict(DolgConfig, model, str(source)), values


def _count_arrays(weights: pathlib.Path) -> int:
    """Returns how many arrays a weights file holds."""
    arrays = []
    with h5py.File(weights) as file:
        file.visititems(lambda _, item: arrays.append(1) if hasattr(item, "shape") else None)
    return len(arrays)


def checkpoint_variables(network: keras.Model) -> dict:
    """Returns the network's variables by path, for `tf.train.Checkpoint`.

    Not the network itself: a checkpoint of a Keras 3 model leaves out layers that stand in a
    list, in silence, on saving and on restoring.
    """
    variables = {variable.path: variable.value for variable in network.variables}
    if len(variables) != len(network.variables):
        raise ValueError("two variables of the network have the same path")
    return variables


def _find_checkpoint(path: pathlib.Path, checkpoint: str) -> str:
    import tensorflow as tf  # checkpoints of a run are TensorFlow's

    if checkpoint not in ("latest", "best"):
        raise InputError(f"--checkpoint={checkpoint} must be latest or best")
    folder = path / ("checkpoints" if checkpoint == "latest" else "best")
    found = tf.train.latest_checkpoint(str(folder))
    if found is None:
        raise InputError(
            f"{folder} holds no checkpoint; train first, or choose another --checkpoint"
        )
    return found


def _restore(network: keras.Model, path: pathlib.Path, checkpoint: str) -> dict:
    """Fills the network from a run's checkpoint; returns its provenance."""
    import tensorflow as tf

    found = _find_checkpoint(path, checkpoint)
    try:
        checkpoint = tf.train.Checkpoint(network=checkpoint_variables(network))
        checkpoint.restore(found).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise InputError(f"{found} does not fit {path / 'config.json'}: {error}") from error
    step = int(tf.train.load_variable(found, "step/.ATTRIBUTES/VARIABLE_VALUE"))
    return {"source": "training", "run": path.name, "step": step}


def load_head(path: files.Path, num_classes: int) -> np.ndarray | None:
    """Returns the class head (num_classes, D) of a run's latest checkpoint.

    None when the directory is a model directory, or the run had another number of classes.
    """
    import tensorflow as tf

    _, values = read_config(path)
    if "training" not in values or values["data"]["num_classes"] != num_classes:
        return None
    found = _find_checkpoint(pathlib.Path(path), "latest")
    return tf.train.load_variable(found, "head/kernel/.ATTRIBUTES/VARIABLE_VALUE")
