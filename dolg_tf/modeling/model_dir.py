"""The model directory: the only reader and writer of a network on disk.

config.json       {format_version, model, preprocessing, provenance}
model.weights.h5  every variable of the network; the class head is not part of it
"""

import pathlib

import h5py
import keras

from dolg_tf import config as configs
from dolg_tf import files
from dolg_tf.config import InputError
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.recipe import DolgConfig

FORMAT_VERSION = 1
_WEIGHTS = "model.weights.h5"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # what follows a variable's name in a checkpoint


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


def load_dolg(
    path: files.Path, checkpoint: str = "latest", weights: str = "raw"
) -> tuple[keras.Model, DolgConfig, dict]:
    """Builds the network that a directory holds, in float32.

    Args:
      path: a model directory, or a run directory of training.
      checkpoint: "latest" or "best", for a run directory.
      weights: "raw", or "ema" for their moving average, for a run directory.

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
        return network, config, _restore(network, path, checkpoint, weights)
    if weights != "raw":
        raise InputError(f"--weights={weights}: {path} is a model directory, it has only one kind")
    file = path / _WEIGHTS
    if not file.is_file():
        raise InputError(f"{file}: no such file; {path} is no complete model directory")
    try:
        # Keras passes over arrays that a network has no use for: count them.
        stored, needed = _count_arrays(file), len(network.weights)
        if stored != needed:
            raise ValueError(f"{stored} arrays for {needed} variables")
        network.load_weights(file)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{file} does not fit {path / 'config.json'}: {error}") from error
    return network, config, values["provenance"]


def read_config(path: files.Path) -> tuple[DolgConfig, dict]:
    """Returns the network's configuration, and all of config.json, of a model or run directory.

    Raises:
      InputError: when there is none, or its format is another.
    """
    source = pathlib.Path(path) / "config.json"
    if not source.is_file():
        raise InputError(f"{path} is no model or run directory: it holds no config.json")
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


def _restore(network: keras.Model, path: pathlib.Path, checkpoint: str, weights: str) -> dict:
    """Fills the network from a run's checkpoint; returns its provenance."""
    import tensorflow as tf

    if weights not in ("raw", "ema"):
        raise InputError(f"--weights={weights} must be raw or ema")
    found = _find_checkpoint(path, checkpoint)
    section = "network" if weights == "raw" else "ema"
    stored = tf.train.load_checkpoint(found).get_variable_to_shape_map()
    if not any(name.startswith(f"{section}/") for name in stored):
        raise InputError(f"--weights={weights}: {path} was trained without --ema_decay")
    try:
        checkpoint = tf.train.Checkpoint(**{section: checkpoint_variables(network)})
        checkpoint.restore(found).assert_existing_objects_matched().expect_partial()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise InputError(f"{found} does not fit {path / 'config.json'}: {error}") from error
    step = int(tf.train.load_variable(found, f"step{VALUE}"))
    return {"source": "training", "run": path.name, "step": step, "weights": weights}


def load_head(path: files.Path) -> dict:
    """Returns the variables of the class head of a run's latest checkpoint, arrays by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(_find_checkpoint(pathlib.Path(path), "latest"))
    return {
        name.removeprefix("head/").removesuffix(VALUE): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith("head/")
    }
