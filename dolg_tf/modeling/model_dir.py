"""The model directory: the only reader and writer of a network on disk.

config.json       {format_version, model, preprocessing, provenance}
model.weights.h5  every variable of the network; the class head is not part of it
"""

import pathlib

import h5py
import keras

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
    values = files.read_json(path / "config.json", FORMAT_VERSION)
    if "training" in values:
        return _load_run(path, values, checkpoint)
    missing = {"model", "preprocessing", "provenance"} - set(values)
    if missing:
        raise InputError(f"{path / 'config.json'} has no {sorted(missing)[0]!r}")
    config = configs.from_dict(
        DolgConfig,
        {**values["model"], "preprocessing": values["preprocessing"]},
        str(path / "config.json"),
    )
    network = build_dolg(config)
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


def _load_run(path: pathlib.Path, values: dict, checkpoint: str):
    import tensorflow as tf  # checkpoints of a run are TensorFlow's

    if checkpoint not in ("latest", "best"):
        raise InputError(f"--checkpoint={checkpoint} must be latest or best")
    folder = path / ("checkpoints" if checkpoint == "latest" else "best")
    found = tf.train.latest_checkpoint(str(folder))
    if found is None:
        raise InputError(
            f"{folder} holds no checkpoint; train first, or choose another --checkpoint"
        )
    config = configs.from_dict(DolgConfig, values["model"], str(path / "config.json"))
    network = build_dolg(config)
    try:
        checkpoint = tf.train.Checkpoint(network=checkpoint_variables(network))
        checkpoint.restore(found).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise InputError(f"{found} does not fit {path / 'config.json'}: {error}") from error
    step = int(tf.train.load_variable(found, "step/.ATTRIBUTES/VARIABLE_VALUE"))
    return network, config, {"source": "training", "run": path.name, "step": step}
