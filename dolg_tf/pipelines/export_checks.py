"""Checkers of exports: an export must say where it comes from and answer to one photo."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image

from dolg_tf.pipelines.checks import check_norms, read_all, short
from dolg_tf.runtime import export_files
from dolg_tf.runtime.one_file import OneFile, load_litert, load_onnx
from dolg_tf.stage import files, installed, quiet
from dolg_tf.stage.config import InputError

_SIDES = (64, 80)  # height and width of the photo to try, in pixels
# Keys that `dolg.json` must have in any export, and in a SavedModel.
_ABOUT = ("format_version", "mode", "preprocessing", "weights_sha256", "provenance")
_ABOUT_SAVED_MODEL = (*_ABOUT, "scales", "precision", "whitening")


@contextlib.contextmanager
def _running(path: pathlib.Path) -> Iterator[None]:
    """Turns what a runtime raises into an InputError: the runtimes' errors have no common class."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path} does not run: {message:.300}; export the model again") from error


def _check_about(about: Mapping, keys: tuple[str, ...], source: files.Path) -> None:
    if missing := [key for key in keys if key not in about]:
        raise InputError(f"{source}: no {missing[0]!r}; export the model again")


def _photo() -> np.ndarray:
    """Returns uint8 RGB of noise, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (*_SIDES, 3), dtype=np.uint8)


def _request() -> Mapping[str, np.ndarray]:
    """Returns a value for each input that a signature of ours, or of DELG's, may have."""
    photo, encoded = _photo(), io.BytesIO()
    Image.fromarray(photo).save(encoded, "PNG")
    return {
        "image_bytes": np.array([encoded.getvalue()], object),
        "images": photo[None],
        "image": photo,
        "scales": np.ones(1, np.float32),
        "input_image": photo,
        "input_scales": np.ones(1, np.float32),
        "input_global_scales_ind": np.zeros(1, np.int32),
        "input_max_feature_num": np.int32(10),
        "input_abs_thres": np.float32(0),
    }


def _check_answer(where: str, outputs: Mapping[str, np.ndarray]) -> None:
    """Makes sure that the answer to one photo is finite, and its descriptors have unit norm."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{where}: {name} are not finite; export the model again")
        if name == "status" and array.any():
            raise InputError(f"{where}: a sound photo gets status {array[0]}; export it again")
        if name in ("descriptor", "descriptors", "global_descriptor", "global_descriptors"):
            rows = array.reshape(-1, array.shape[-1])
            check_norms(rows, f"{where}, {name}", "export the model again")


def check_saved_model(path: pathlib.Path) -> list[str]:
    """Checks a SavedModel: `dolg.json`, and the C++ loader's answers to one photo."""
    read_all(path)
    about, facts = export_files.read_about(path), ["no dolg.json: not an export of ours"]
    needed = ()
    if about is not None:
        _check_about(about, _ABOUT_SAVED_MODEL, path / export_files.ABOUT)
        facts = [f"mode {about['mode']}", f"weights {short(about['weights_sha256'])}"]
        needed = ("serving_default", *(["images"] if about["mode"] == "serving" else []))

    from dolg_tf.runtime.session import CppSession

    with export_files.loading(path):
        loaded = CppSession(path)
    with _running(path), loaded as session, quiet.quietly():
        names = sorted(session.signatures)
        if missing := [name for name in needed if name not in names]:
            raise InputError(f"{path}: no signature {missing[0]!r}; export the model again")
        tried = [name for name in names if _try(session, name, path)]
    if not tried:
        raise InputError(f"{path}: its signatures {names} are not those of an export of ours")
    return [*facts, f"answers to {', '.join(tried)}"]


def _try(session, name: str, path: pathlib.Path) -> bool:
    """Runs a signature once; returns False when it takes inputs that are not known."""
    request, inputs = _request(), session.signatures[name].inputs
    if not set(inputs) <= set(request):
        return False
    outputs = session.run(name, {key: request[key] for key in inputs})
    _check_answer(f"{path}, signature {name!r}", outputs)
    return True


def _check_file(path: pathlib.Path, load: Callable[[pathlib.Path], OneFile]) -> list[str]:
    """Checks what an export of one file says of itself, and its answer to one photo."""
    with _running(path):
        loaded = load(path)
        _check_about(loaded.about, _ABOUT, path)
        row = loaded.describe(_photo()[None].astype(np.float32) / 255)
    _check_answer(str(path), {"descriptor": row})
    digest = short(loaded.about["weights_sha256"])
    return [f"weights {digest}", f"descriptors of width {row.shape[-1]}"]


def check_onnx(path: pathlib.Path) -> list[str]:
    """Checks an ONNX file through onnxruntime."""
    installed.need("onnx", "checking an ONNX file", "onnxruntime")
    return _check_file(path, load_onnx)


def check_litert(path: pathlib.Path) -> list[str]:
    """Checks a LiteRT file: the `dolg.json` in the zip at its end, and its answer."""
    installed.need("litert", "checking a LiteRT file", "ai_edge_litert")
    return _check_file(path, load_litert)
