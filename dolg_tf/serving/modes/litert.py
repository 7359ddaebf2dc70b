"""Mode `litert`: the network as a LiteRT (TensorFlow Lite) file; its contract:
`dolg_tf/serving/one_file.py`.

Its signature `serving_default` takes `image`, float32 RGB in [0, 1], (B, H, W, 3), and gives
`descriptor`, float32 (B, D), of unit L2 norm, at one scale. It needs no operations but LiteRT's
own. `unzip -p FILE dolg.json` says where it comes from.
"""

import json
import pathlib
import zipfile

import tensorflow as tf

from dolg_tf.runtime.one_file import ABOUT, load_litert
from dolg_tf.serving import one_file
from dolg_tf.serving.one_file import Distance, Exported, FileMode
from dolg_tf.stage import checksums

_TOLERANCE = 1e-5  # of float32
# The least cosine to float32. Measured minimum of three networks on noise and photos: 0.99999 and
# 0.9967.
_COSINE = {"float16": 0.9999, "dynamic": 0.98}
_USE = """describe = Interpreter("NAME").get_signature_runner("serving_default")
descriptor = describe(image=photo)["descriptor"][0]  # (D,)
"""


def _write(exported: Exported, path: pathlib.Path) -> None:
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
    # A zip appended to the model, where TensorFlow Lite's metadata keep associated files.
    about = {**exported.about, checksums.KEY: checksums.of_file(path)}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(about, indent=1))


def _check(exported: Exported, path: pathlib.Path) -> Distance:
    found = one_file.distance(exported, load_litert(path).describe)
    quantize = exported.about["quantize"]
    if quantize == "none":
        right = found.difference <= _TOLERANCE
    else:
        right = found.cosine >= _COSINE[quantize]
    if not right:
        raise RuntimeError(
            f"LiteRT's descriptors with --quantize={quantize} are too far from the network's: "
            f"{found}"
        )
    return found


MODE = FileMode(
    form=lambda config: {"mode": "litert", "quantize": config.quantize},
    write=_write,
    check=_check,
    words=one_file.card_words("from ai_edge_litert.interpreter import Interpreter", _USE, "tflite"),
)
