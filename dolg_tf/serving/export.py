"""Network on disk -> SavedModel, ONNX file or LiteRT file."""

import importlib
import importlib.util
import pathlib

from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.stage import files, installed
from dolg_tf.weights import published


def export(config: ExportConfig) -> pathlib.Path:
    """Exports a trained, converted or ready network in the form that `--mode` names.

    The written model is run before it is put in place and must answer as the network does. Its
    contract is in `dolg_tf/serving/modes/`, in the file of the mode's name.

    Returns:
      The directory of the SavedModel, or the file.

    Raises:
      InputError: when the output exists, a package is missing, or model, whitening or report
        cannot be read or do not fit.
      RuntimeError: when the written model does not answer as the network does.
    """
    mode = MODES[config.mode]
    installed.need(config.mode, f"--mode={config.mode}", *mode.packages)
    published.need(config.backbone_weights)
    if mode.suffix:
        for path in (config.output, f"{config.output}.md"):
            files.check_output(path, config.overwrite)
    else:
        files.check_output(config.output, config.overwrite, "saved_model.pb")
    # Imported by the name in the table, and only now, since it imports TensorFlow.
    module = importlib.import_module(f"dolg_tf.serving.modes.{config.mode}")
    return module.MODE.export(config)
