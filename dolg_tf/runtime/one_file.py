"""Exports that are one file, run by their own runtimes, onnxruntime and LiteRT."""

import json
import pathlib
import typing
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

ABOUT = "dolg.json"  # in the zip that is appended to a LiteRT file


class OneFile(typing.NamedTuple):
    """A file that is loaded.

    Attributes:
      describe: float32 RGB in [0, 1], (B, H, W, 3) -> float32 (B, D).
      about: what the file says of itself, such as its mode and the hash of its weights.
    """

    describe: Callable[[np.ndarray], np.ndarray]
    about: Mapping


def load_onnx(path: pathlib.Path) -> OneFile:
    """Loads an ONNX file; raises what onnxruntime raises."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return OneFile(
        lambda photos: session.run(["descriptor"], {"image": photos})[0],
        session.get_modelmeta().custom_metadata_map,
    )


def load_litert(path: pathlib.Path) -> OneFile:
    """Loads a LiteRT file; raises what LiteRT and zipfile raise."""
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read(ABOUT))
    interpreter = Interpreter(model_path=str(path))
    index = interpreter.get_input_details()[0]["index"]

    def describe(photos):
        interpreter.resize_tensor_input(index, photos.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, photos)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return OneFile(describe, about)
