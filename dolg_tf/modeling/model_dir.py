"""The model directory: the only code that reads and writes a network on disk.

config.json       {format_version, network, model, preprocessing, provenance, crc32c}
model.weights.h5  all variables of the network; the class head is not among them
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import typing
from collections.abc import Iterator

import keras

from dolg_tf.modeling.config import DolgConfig, HowConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.files import config_file
from dolg_tf.modeling.files.h5_weights import check_finite, load_weights
from dolg_tf.modeling.how import build_how
from dolg_tf.stage import checksums, files
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError

_HDF5_BYTES = 4096  # more than HDF5 stores about an array
_DAMAGED = (ValueError, LookupError, RuntimeError, AssertionError, TypeError, UnicodeError)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # follows a variable's name in a checkpoint


def save_dolg(
    network: keras.Model, config: DolgConfig | HowConfig, path: files.Path, provenance: dict
) -> None:
    """Writes a model directory completely or not at all, replacing an earlier one.

    Args:
      network: from `build_network(config)`.
      config: its configuration.
      path: the directory.
      provenance: where the weights come from, as plain JSON values; `local_threshold` is the
        strength from which a local feature counts.
    """
    model = configs.to_dict(config)
    preprocessing = model.pop("preprocessing")
    with files.atomic_path(path) as folder:
        folder.mkdir()
        # On a disk that fills up, HDF5 crashes natively while it closes the file.
        arrays = sum(each.numpy().nbytes + _HDF5_BYTES for each in network.weights)
        files.reserve(folder / config_file.WEIGHTS, arrays)
        network.save_weights(folder / config_file.WEIGHTS)
        about = {
            "format_version": config_file.FORMAT_VERSION,
            **config_file.name_of_network(config),
            "model": model,
            "preprocessing": preprocessing,
            "provenance": provenance,
        }
        sums = checksums.of_files(folder, [config_file.WEIGHTS])
        checksums.write_json(folder / config_file.NAME, about, sums)


class LoadedNetwork(typing.NamedTuple):
    """A network read from disk.

    Attributes:
      network: float32 RGB in [0, 1], (B, H, W, 3), to descriptors (B, D).
      config: its configuration: a `DolgConfig` for `build_dolg`, or a `HowConfig` for `build_how`.
      provenance: where the weights come from, as plain JSON values. `local_threshold`, where
        training measured it, is the median strength of local features.
    """

    network: keras.Model
    config: DolgConfig | HowConfig
    provenance: dict


def load_network(
    path: files.Path, checkpoint: str = "latest", weights: str = "raw"
) -> LoadedNetwork:
    """Loads a network from a model directory or a run directory, in float32.

    Args:
      path: a model directory, or a run directory of training.
      checkpoint: "latest" or "best"; only a run directory has more than one.
      weights: "raw", or "ema" for their moving average; only a run directory has one.

    Returns:
      The network with its configuration and the provenance of its weights.

    Raises:
      InputError: if the directory does not exist, has another format, holds weights that do not
        fit its configuration, or holds a weight that is NaN or infinite.

    Example:
      ```python
      loaded = dolg_tf.load_network("runs/mine", checkpoint="best")
      descriptors = loaded.network(photos)  # float32 (B, H, W, 3) in [0, 1] -> (B, 512)
      print(loaded.config.backbone, loaded.provenance)
      ```
    """
    path = pathlib.Path(path)
    config, values, sums = config_file.find_network(path, checkpoint, weights)
    network = _build(config, path / config_file.NAME)
    if "training" in values:
        return LoadedNetwork(network, config, _restore(network, path, checkpoint, weights))
    of_weights = {name: sums[name] for name in sums if name == config_file.WEIGHTS}
    checksums.check(path, of_weights, config_file.REMEDY)
    load_weights(network, path / config_file.WEIGHTS)
    return LoadedNetwork(network, config, values["provenance"])


def build_network(
    config: DolgConfig | HowConfig, dtype: str | keras.DTypePolicy | None = None
) -> keras.Model:
    """Builds the network of a configuration with random weights; see `build_dolg`, `build_how`."""
    build = build_dolg if isinstance(config, DolgConfig) else build_how
    return build(config, dtype)


def _build(config: DolgConfig | HowConfig, source: pathlib.Path) -> keras.Model:
    import tensorflow as tf

    try:
        return build_network(config)
    except InputError:
        raise
    except (ValueError, tf.errors.ResourceExhaustedError) as error:  # enormous numbers
        raise InputError(f"{source}: this network cannot be built: {error}") from error


def weights_hash(network: keras.Model, config: DolgConfig | HowConfig) -> str:
    """Returns the SHA-256 of all that determines a network's descriptors.

    It covers name, shape and bytes of every variable, in order, and the configuration, since
    neither preprocessing nor dilations show in a variable.
    """
    values = configs.to_dict(config)
    if not values.get("delg_local"):  # networks of before this option keep their hash
        values.pop("delg_local", None)
    model = json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(f"{model}\n".encode())
    for variable in network.variables:
        array = variable.numpy()
        digest.update(f"{variable.path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checkpoint_variables(network: keras.Model) -> dict:
    """Returns the network's variables by path, for `tf.train.Checkpoint`.

    The network itself will not do: a checkpoint of a Keras 3 model silently omits layers in a
    Python list, when saving and when restoring.
    """
    variables = {variable.path: variable.value for variable in network.variables}
    if len(variables) != len(network.variables):
        raise ValueError("two variables of the network have the same path")
    return variables


@contextlib.contextmanager
def reading_checkpoint(path: files.Path, wrong: str = "is damaged") -> Iterator[None]:
    """Turns what TensorFlow raises for a checkpoint that it cannot read into one line.

    Args:
      path: of the checkpoint, or of the folder with its list.
      wrong: what the error says of it.

    Raises:
      InputError: when the block cannot read it.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, *_DAMAGED) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "; take another checkpoint, or train again"
        if os.strerror(errno.EACCES) in reason:
            wrong, remedy = "cannot be read", ""
        elif isinstance(error, tf.errors.ResourceExhaustedError):
            wrong, remedy = "does not fit into the memory", ""
        raise InputError(f"{path} {wrong} ({reason:.200}){remedy}") from error


def _find_checkpoint(path: pathlib.Path, checkpoint: str) -> str:
    import tensorflow as tf  # a run has TensorFlow's checkpoints

    folder = config_file.checkpoint_folder(path, checkpoint)
    with reading_checkpoint(folder):
        found = tf.train.latest_checkpoint(str(folder))
    if found is None:
        raise config_file.no_checkpoint(folder)
    return found


def _restore(network: keras.Model, path: pathlib.Path, checkpoint: str, weights: str) -> dict:
    """Fills the network from a run's checkpoint and returns its provenance."""
    import tensorflow as tf

    found = _find_checkpoint(path, checkpoint)
    section = "network" if weights == "raw" else "ema"
    with reading_checkpoint(found):
        stored = tf.train.load_checkpoint(found).get_variable_to_shape_map()
        step = int(tf.train.load_variable(found, f"step{VALUE}"))
    if not any(name.startswith(f"{section}/") for name in stored):
        raise InputError(f"--weights={weights}: {path} was trained without --ema_decay")
    with reading_checkpoint(found, f"does not fit {path / 'config.json'}, or is damaged"):
        checkpoint = tf.train.Checkpoint(**{section: checkpoint_variables(network)})
        checkpoint.restore(found).assert_existing_objects_matched().expect_partial()
    check_finite(network, found)
    provenance = {"source": "training", "run": path.name, "step": step, "weights": weights}
    key = f"local_threshold/{weights}{VALUE}"
    if key in stored:
        with reading_checkpoint(found):
            threshold = float(tf.train.load_variable(found, key))
        if threshold > 0:  # measured by now
            provenance["local_threshold"] = threshold
    return provenance


def load_head(path: files.Path, checkpoint: str = "latest", weights: str = "raw") -> dict:
    """Returns the variables of a run's class head, as arrays by name.

    Args:
      path: run directory.
      checkpoint: "latest" or "best".
      weights: "raw", or "ema" for the moving average of its trained variables.
    """
    import tensorflow as tf

    prefixes = ["head/"]
    if weights == "ema":
        prefixes.append("ema/head.S")  # how a checkpoint escapes a slash inside a key
    found, head = _find_checkpoint(pathlib.Path(path), checkpoint), {}
    with reading_checkpoint(found):
        reader = tf.train.load_checkpoint(found)
        names = reader.get_variable_to_shape_map()
        for prefix in prefixes:
            for name in names:
                if name.startswith(prefix):
                    key = name.removeprefix(prefix).removesuffix(VALUE)
                    head[key] = reader.get_tensor(name)
    return head
