"""The network as a LiteRT (TensorFlow Lite) file; its contract: `dolg_tf/serving/one_file.py`."""

import dataclasses
import json
import pathlib
import zipfile

from dolg_tf.serving import one_file
from dolg_tf.serving.one_file import Distance, Exported, FileExportConfig
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError

ABOUT = "dolg.json"
_TOLERANCE = 1e-5  # of float32
# To float32, at least. The least of three networks, noise and photos: 0.99999 and 0.9967.
_COSINE = {"float16": 0.9999, "dynamic": 0.98}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteRTConfig(FileExportConfig):
    """Which network is exported to which .tflite file."""

    quantize: str = configs.option(
        "none: float32; float16: weights of half the size; dynamic: int8 weights, a quarter of the "
        "size, and activations that are quantised while it runs",
        "none",
        choices=("none", "float16", "dynamic"),
    )

    def __post_init__(self):
        if not self.output.endswith(".tflite"):
            raise InputError(f"--output={self.output} must end in .tflite")


def export_litert(config: LiteRTConfig) -> pathlib.Path:
    """Exports a trained or converted network as a LiteRT file, checked in ai_edge_litert.

    Its signature `serving_default` takes `image`, float32 RGB in [0, 1], (B, H, W, 3), and gives
    `descriptor`, float32 (B, D), of unit L2 norm, at one scale. It needs no operations but
    LiteRT's own. `unzip -p FILE dolg.json` says where it comes from.

    Returns:
      The file.

    Raises:
      InputError: when the output exists, a package is missing, or model or report cannot be read
        or do not fit.
      RuntimeError: when the file's descriptors are too far from the network's.
    """
    one_file.need_packages("litert", "ai_edge_litert")
    form = {"mode": "litert", "quantize": config.quantize}
    return one_file.export_file(config, form, _write, _check)


def _write(exported: Exported, path: pathlib.Path) -> None:
    import tensorflow as tf

    owner = tf.Module()
    owner.weights = exported.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [exported.describe.get_concrete_function()], owner
    )
    quantize = exported.about["quantize"]
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())
    # Where TensorFlow Lite's metadata put files that go with a model: a zip behind it.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(exported.about, indent=1))


def _check(exported: Exported, path: pathlib.Path) -> Distance:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    index = interpreter.get_input_details()[0]["index"]

    def run(photos):
        interpreter.resize_tensor_input(index, photos.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, photos)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    found = one_file.distance(exported, run)
    quantize = exported.about["quantize"]
    if quantize == "none":
        right = found.difference <= _TOLERANCE
    else:
        right = found.cosine >= _COSINE[quantize]
    if not right:
        raise RuntimeError(f"LiteRT's descriptors, --quantize={quantize}, are off: {found}")
    return found
