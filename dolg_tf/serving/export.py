"""Network on disk -> SavedModel, ONNX file or LiteRT file."""

import importlib
import importlib.util
import pathlib

from dolg_tf.modeling.files.config_file import find_network
from dolg_tf.runtime.whitening import load_whitening
from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.serving.model_card import read_report
from dolg_tf.serving.searched import Searched
from dolg_tf.stage import files, installed
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published


def export(config: ExportConfig, searched: Searched | None = None) -> pathlib.Path:
    """Exports a trained, converted or ready network in the form that `--mode` names.

    The written model is run before it is put in place and must answer as the network does. Its
    contract is in `dolg_tf/serving/modes/`, in the file of the mode's name.

    Args:
      config: the network, and where to write it.
      searched: for mode search, what it finds: `pipelines.export` reads an index.

    Returns:
      The directory of the SavedModel, or the file.

    Raises:
      InputError: when the output exists, a package is missing, or model, whitening or report
        cannot be read or do not fit.
      RuntimeError: when the written model does not answer as the network does.
    """
    if searched is None:
        return _mode(config).export(config)
    return _mode(config).export(config, searched=searched)


def export_twin(config: ExportConfig) -> pathlib.Path:
    """Exports a network that differs only in its weights from one that was just exported.

    As `export`, but the written SavedModel is run once, in the C++ loader, instead of on all kinds
    of input in both loaders.
    """
    return _mode(config).export(config, in_brief=True)


def check(config: ExportConfig) -> None:
    """Makes all checks that need no TensorFlow.

    Raises:
      InputError: as `export`.
    """
    mode = MODES[config.mode]
    installed.need(config.mode, f"--mode={config.mode}", *mode.packages)
    published.need(config.backbone_weights)
    if mode.suffix:
        for path in (config.output, f"{config.output}.md"):
            files.check_output(path, config.overwrite)
    else:
        files.check_output(config.output, config.overwrite, "saved_model.pb")
    _check_inputs(config)


def _mode(config: ExportConfig):
    """Returns what exports in the mode."""
    check(config)
    # Imported by the name in the table, and only now, since it imports TensorFlow.
    return importlib.import_module(f"dolg_tf.serving.modes.{config.mode}").MODE


def _check_inputs(config: ExportConfig) -> None:
    """Tells of a wrong path now, not after the import of TensorFlow."""
    read_report(config.report)
    if config.local_reduction and not pathlib.Path(config.local_reduction).is_file():
        raise InputError(f"--local_reduction={config.local_reduction}: no such file")
    if not config.model_dir:
        return
    network, _, _ = find_network(config.model_dir, config.checkpoint, config.weights)
    if config.whitening and network.descriptor_size:
        load_whitening(config.whitening, network.descriptor_size)
