"""Exports that are one file, run by their own runtimes, onnxruntime and LiteRT."""

import json
import pathlib
import typing
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from dolg_tf.runtime.export_files import REMEDY
from dolg_tf.stage import checksums
from dolg_tf.stage.config import InputError

ABOUT = "dolg.json"  # in the zip that is appended to a LiteRT file
_MOST_ABOUT = 1 << 20  # bytes
# What comes before the digits: a ModelProto of one entry of metadata_props, as protobuf writes it,
# which joins the entries before it. Protobuf's messages may be written one behind the other.
_CRC_ENTRY, _CRC_DIGITS = b"\x72\x12\x0a\x06crc32c\x12\x08", 8


class OneFile(typing.NamedTuple):
    """A file that is loaded.

    Attributes:
      describe: float32 RGB in [0, 1], (B, H, W, 3) -> float32 (B, D).
      about: what the file says of itself, such as its mode and the hash of its weights.
    """

    describe: Callable[[np.ndarray], np.ndarray]
    about: Mapping


def seal_onnx(path: pathlib.Path) -> None:
    """Appends the checksum of an ONNX file to its metadata, which may stand at its end."""
    crc = checksums.of_file(path)
    with path.open("ab") as file:
        file.write(_CRC_ENTRY + crc.encode())


def _check_onnx(path: pathlib.Path) -> None:
    """Compares an ONNX file with its checksum; an older one has none."""
    with path.open("rb") as file:
        start = file.seek(0, 2) - len(_CRC_ENTRY) - _CRC_DIGITS
        file.seek(max(start, 0))
        tail = file.read()
    if tail.startswith(_CRC_ENTRY):
        found = checksums.of_file(path, start)
        if found != tail[len(_CRC_ENTRY) :].decode(errors="replace"):
            raise checksums.wrong(path, REMEDY)


def load_onnx(path: pathlib.Path) -> OneFile:
    """Loads an ONNX file; raises what onnxruntime raises.

    Raises:
      InputError: when its checksum is wrong.
    """
    import onnxruntime

    _check_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return OneFile(
        lambda photos: session.run(["descriptor"], {"image": photos})[0],
        session.get_modelmeta().custom_metadata_map,
    )


def _read_about(path: pathlib.Path) -> dict:
    """Returns what a LiteRT file says of itself, once its checksum is right."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(ABOUT)
        if entry.file_size > _MOST_ABOUT:
            raise InputError(f"{path}: its {ABOUT} has {entry.file_size:,} bytes; {REMEDY}")
        about = json.loads(archive.read(entry))
    if not isinstance(about, dict):
        raise InputError(f"{path}: its {ABOUT} is no object; {REMEDY}")
    expected = about.pop(checksums.KEY, None)  # an older file has none
    if expected is not None and checksums.of_file(path, entry.header_offset) != expected:
        raise checksums.wrong(path, REMEDY)
    return about


def load_litert(path: pathlib.Path) -> OneFile:
    """Loads a LiteRT file; raises what LiteRT and zipfile raise.

    Raises:
      InputError: when its checksum is wrong.
    """
    from ai_edge_litert.interpreter import Interpreter

    about = _read_about(path)
    interpreter = Interpreter(model_path=str(path))
    index = interpreter.get_input_details()[0]["index"]

    def describe(photos):
        interpreter.resize_tensor_input(index, photos.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, photos)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return OneFile(describe, about)
