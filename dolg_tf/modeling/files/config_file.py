"""What model and run directories say of themselves, without TensorFlow.

A wrong directory is told of here, before the seconds that importing TensorFlow takes.
"""

import pathlib

from dolg_tf.modeling.config import NETWORKS, DolgConfig, HowConfig
from dolg_tf.stage import checksums, files
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError

NAME = "config.json"
WEIGHTS = "model.weights.h5"  # of a model directory
FORMAT_VERSION = 2  # of config.json, a run directory's too
REMEDY = "convert the network, or train it, again"


def read_config(path: files.Path) -> tuple[DolgConfig | HowConfig, dict]:
    """Reads config.json of a model or run directory.

    Returns:
      The network's configuration, and everything that config.json holds.

    Raises:
      InputError: if there is no config.json, or it is damaged or has another format.
    """
    return _read(path)[:2]


def find_network(
    path: files.Path, checkpoint: str = "latest", weights: str = "raw"
) -> tuple[DolgConfig | HowConfig, dict, dict[str, str]]:
    """Looks for a network, as far as that can be done without reading its weights.

    Args:
      path, checkpoint, weights: as `model_dir.load_network` takes them.

    Returns:
      What `read_config` returns, and the checksums of other files.

    Raises:
      InputError: if it is not there.
    """
    path = pathlib.Path(path)
    config, values, sums = _read(path)
    if "training" in values:
        folder = checkpoint_folder(path, checkpoint)
        if weights not in ("raw", "ema"):
            raise InputError(f"--weights={weights} must be raw or ema")
        if not (folder / "checkpoint").exists():
            raise no_checkpoint(folder)
    elif weights != "raw":
        raise InputError(
            f"--weights={weights}: {path} is a model directory, which holds only raw ones"
        )
    elif not (path / WEIGHTS).is_file():
        raise InputError(f"{path / WEIGHTS}: no such file; {path} is an incomplete model directory")
    return config, values, sums


def name_of_network(config: DolgConfig | HowConfig) -> dict[str, str]:
    """Returns what config.json says of the kind of network: nothing of DOLG, as ever."""
    names = {cls: name for name, cls in NETWORKS.items()}
    return {} if type(config) is DolgConfig else {"network": names[type(config)]}


def need_dolg(config: DolgConfig | HowConfig, path: files.Path, flag: str) -> DolgConfig:
    """Returns the configuration of a DOLG network, for what other networks do not do.

    Args:
      config: of the network.
      path: where it was read.
      flag: that gave the path, for the error.

    Raises:
      InputError: if it is another network.
    """
    if type(config) is not DolgConfig:
        name = name_of_network(config)["network"].upper()
        raise InputError(f"--{flag}={path} is a {name} network; give a DOLG network")
    return config


def has_begun(logdir: files.Path) -> bool:
    """Whether the folder holds a run that can be continued, that is, one with a checkpoint."""
    logdir = pathlib.Path(logdir)
    saved = (logdir / "checkpoints" / "checkpoint").exists()
    return saved and (logdir / NAME).exists()


def checkpoint_folder(path: pathlib.Path, checkpoint: str) -> pathlib.Path:
    """Returns the folder of a run's checkpoints that `--checkpoint` names.

    Raises:
      InputError: if it names none.
    """
    if checkpoint not in ("latest", "best"):
        raise InputError(f"--checkpoint={checkpoint} must be latest or best")
    return path / ("checkpoints" if checkpoint == "latest" else "best")


def no_checkpoint(folder: pathlib.Path) -> InputError:
    """Returns the error of a run without checkpoint."""
    return InputError(f"{folder} has no checkpoint; train first, or give another --checkpoint")


def _read(path: files.Path) -> tuple[DolgConfig | HowConfig, dict, dict[str, str]]:
    source = pathlib.Path(path) / NAME
    if not source.is_file():
        wrong = f"{path} is not a model or run directory: it has no {NAME}"
        if (pathlib.Path(path) / "saved_model.pb").exists():
            wrong += ", but it is a SavedModel; give what it was exported from"
        raise InputError(wrong)
    values, sums = checksums.read_json(source, FORMAT_VERSION, REMEDY)
    run = "training" in values
    for key in ("model", "data", "training") if run else ("model", "preprocessing", "provenance"):
        if key not in values:
            raise InputError(f"{source} has no {key!r}")
        if not isinstance(values[key], dict):
            raise InputError(f"{source}: {key} is {values[key]!r:.60}; it must be an object")
    model = dict(values["model"])
    if not run:
        model["preprocessing"] = values["preprocessing"]
    name = values.get("network", "dolg")
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise InputError(f"{source}: network is {name!r:.60}; this release knows {known}")
    return configs.from_dict(NETWORKS[name], model, str(source)), values, sums
