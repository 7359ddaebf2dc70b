"""How photos are described: by a SavedModel, ours or another DELG extractor."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import numpy as np

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

Describe = Callable[[np.ndarray], np.ndarray]
_DELG = ("input_global_scales_ind", "input_image", "input_scales")


@dataclasses.dataclass(frozen=True)
class Describer:
    """A way of describing photos.

    Attributes:
      model_hash: tells it from every other.
      scales: of a photo, whose descriptors are averaged.
      whitening: what `dolg.json` says of the whitening in the model; None: there is none.
      load: returns uint8 RGB (B, H, W, 3) -> float32 (B, D), rows of unit L2 norm; takes long.
    """

    model_hash: str
    scales: tuple[float, ...]
    whitening: dict | None
    load: Callable[[], Describe]


def open_describer(saved_model: files.Path, scales: tuple[float, ...]) -> Describer:
    """Opens a SavedModel of mode `serving` or `delg`, without loading TensorFlow.

    One that has no `assets.extra/dolg.json`, another's DELG extractor, is told from others by a
    hash of its files.

    Args:
      saved_model: the directory.
      scales: of the photos; none: those that the model was exported with.

    Raises:
      InputError: when there is no SavedModel, or nobody says which scales.
    """
    path = pathlib.Path(saved_model)
    if not (path / "saved_model.pb").is_file():
        raise InputError(f"--saved_model={path}: no SavedModel there; `dolg export` writes one")
    about = path / "assets.extra" / "dolg.json"
    if about.exists():
        info = files.read_json(about, 1)
        for key in ("scales", "weights_sha256"):
            if not info.get(key):
                raise InputError(f"{about}: no {key!r}; export the model again")
    elif scales:
        info = {"scales": scales, "weights_sha256": _hash_files(path)}
    else:
        raise InputError(
            f"--saved_model={path} has no assets.extra/dolg.json, so it does not say its scales; "
            "give them to `dolg extract`, such as --scales=0.7071,1.0,1.4142"
        )
    scales = tuple(scales or info["scales"])
    return Describer(
        info["weights_sha256"], scales, info.get("whitening"), lambda: load_describe(path, scales)
    )


def _hash_files(saved_model: pathlib.Path) -> str:
    digest = hashlib.sha256()
    variables = sorted((saved_model / "variables").glob("*"))
    for file in (saved_model / "saved_model.pb", *variables):
        digest.update(f"{file.name} {files.sha256(file)}\n".encode())
    return digest.hexdigest()


def load_describe(saved_model: pathlib.Path, scales: tuple[float, ...]) -> Describe:
    """Loads a SavedModel and describes photos by it; see `load_model` and `describe_by`."""
    return describe_by(load_model(saved_model), scales)


def load_model(saved_model: files.Path):
    """Loads a SavedModel that has the signature `images`, or is DELG's extractor.

    Raises:
      InputError: when it is neither.
    """
    import tensorflow as tf

    model = tf.saved_model.load(str(saved_model))
    if "images" in model.signatures:
        return model
    call = model.signatures.get("serving_default")
    inputs = () if call is None else tuple(sorted(call.structured_input_signature[1]))
    if inputs != _DELG or "global_descriptors" not in call.structured_outputs:
        raise InputError(
            f"--saved_model={saved_model} has no signature 'images', only "
            f"{sorted(model.signatures)}, and is no extractor of DELG's global descriptors; "
            "`dolg export --mode=serving` writes one"
        )
    return model


def describe_by(model, scales: tuple[float, ...]) -> Describe:
    """Returns how a loaded model describes photos.

    Args:
      model: as `load_model` gives it.
      scales: of the photos.

    Returns:
      uint8 RGB (B, H, W, 3) -> float32 (B, D), rows of unit L2 norm.
    """
    import tensorflow as tf

    describe = _describe_batch if "images" in model.signatures else _describe_one_by_one
    return describe(model, tf.constant(scales, tf.float32))


def _describe_batch(model, scales) -> Describe:
    import tensorflow as tf

    def describe(images):
        # Through `model`: a signature alone does not keep the variables alive.
        call = model.signatures["images"]
        return call(images=tf.constant(images), scales=scales)["descriptors"].numpy()

    return describe


def _describe_one_by_one(model, scales) -> Describe:
    """DELG's extractor takes one photo and gives one row a scale, which its user averages."""
    import tensorflow as tf

    indices = tf.range(len(scales))

    def describe(images):
        call, found = model.signatures["serving_default"], []
        for image in images:
            rows = call(
                input_image=tf.constant(image),
                input_scales=scales,
                input_global_scales_ind=indices,
            )["global_descriptors"]
            total = tf.reduce_sum(tf.math.l2_normalize(rows, axis=-1), 0)
            found.append(tf.math.l2_normalize(total, axis=-1).numpy())
        return np.stack(found)

    return describe
