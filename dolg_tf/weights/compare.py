"""Distance of a network from outputs that other code computed, and which part is to blame.

A reference is an .npz file with one or more photos, each under a prefix of its own ("224x288/", or
none):

image      uint8 RGB (H, W, 3)
input      input of the other network, (H, W, 3), in its channel order; may be missing
f3, f4     stride-16 and stride-32 map, (h, w, C), or every k-th channel of it
local      local features after attention, likewise
attention  (h, w)
descriptor (D,), not normalised

Of HOW, in place of f3, f4 and local:

features   the backbone's map, (h, w, C), or every k-th channel of it
smoothed   its 3x3 mean, likewise
reduced    (h, w, D), not normalised

At least one output is required.
"""

import keras
import numpy as np

from dolg_tf.modeling import dolg, how
from dolg_tf.stage.config import InputError
from dolg_tf.weights.files.tensors import open_tensors

# The paper's names, and ours.
_OUTPUTS = {
    "f3": "p4",
    "f4": "p5",
    "local": "local",
    "features": "features",
    "smoothed": "smoothed",
    "reduced": "reduced",
    "attention": "attention",
    "descriptor": "descriptor",
}


def compare(network: keras.Model, path) -> list[tuple[str, str, float]]:
    """Returns the errors of the network against a reference.

    Args:
      network: from `build_dolg` or `build_how`, with its weights.
      path: .npz file, see above.

    Returns:
      (photo, what, error) rows. An error is the largest difference over the largest absolute value
      of the reference. `what` is "preprocessing" (our normalised input against theirs), "network:
      f3" and so on (our network on their input), or "both: f3" and so on (our network on the
      photo).

    Raises:
      InputError: when the file cannot be read or does not fit the network.
    """
    arrays, photos = _load(path)
    model = (how if network.name == "how" else dolg).intermediates(network)
    normalized = network.get_layer("normalization").output
    # From the normalised input on, so that errors of preprocessing and network cannot cancel out.
    normalize = keras.Model(network.input, normalized)
    rest = keras.Model(normalized, model.output)
    rows = []
    for photo in photos:
        image = arrays[f"{photo}image"].astype(np.float32)[None] / np.float32(255)
        if f"{photo}input" in arrays:
            theirs = arrays[f"{photo}input"]
            if theirs.shape != image.shape[1:]:
                raise InputError(
                    f"--reference={path}: {photo}input has shape {theirs.shape}, but its image "
                    f"{image.shape[1:]}"
                )
            ours = keras.ops.convert_to_numpy(normalize(image))[0]
            rows.append((photo, "preprocessing", _error("input", ours, theirs, path)))
            outputs = rest(theirs[None].astype(np.float32), training=False)
            rows += _errors(photo, "network", outputs, arrays, path)
        rows += _errors(photo, "both", model(image, training=False), arrays, path)
    return rows


def _load(path):
    """Returns the arrays of a reference by name, and its prefixes."""
    tensors = open_tensors(path).tensors
    photos = [name.removesuffix("image") for name in tensors if name.endswith("image")]
    if not photos:
        raise InputError(f"--reference={path} holds no image, only {', '.join(tensors)}")
    arrays = {}
    for photo in photos:
        image = tensors[f"{photo}image"]
        if image.dtype != "uint8" or len(image.shape) != 3 or image.shape[2] != 3:
            raise InputError(
                f"--reference={path}: {photo}image is {image.dtype} {image.shape}, not uint8 "
                "(H, W, 3)"
            )
        if min(image.shape[:2]) < 32:
            raise InputError(f"--reference={path}: {photo}image must be at least 32 x 32 pixels")
        names = [name for name in _OUTPUTS if f"{photo}{name}" in tensors]
        if not names:
            raise InputError(
                f"--reference={path}: {photo}image has no output beside it; add one or more of "
                f"{', '.join(photo + name for name in _OUTPUTS)}"
            )
        for name in ("image", "input", *names):
            if f"{photo}{name}" in tensors:
                arrays[f"{photo}{name}"] = tensors[f"{photo}{name}"].read()
    return arrays, photos


def _errors(photo, what, outputs, arrays, path):
    return [
        (
            photo,
            f"{what}: {name}",
            _error(name, _as_reference(name, outputs, key), arrays[f"{photo}{name}"], path),
        )
        for name, key in _OUTPUTS.items()
        if f"{photo}{name}" in arrays
    ]


def _as_reference(name, outputs, key):
    if key not in outputs:
        raise InputError(f"--reference has {name}, which this network does not compute")
    array = keras.ops.convert_to_numpy(outputs[key])[0]
    return array[..., 0] if name == "attention" and array.ndim == 3 else array


def _error(name, ours, theirs, path) -> float:
    step = 1
    if ours.ndim == 3 and theirs.ndim == 3 and theirs.shape[-1]:
        step = max(1, ours.shape[-1] // theirs.shape[-1])
    ours = ours[..., ::step]
    if ours.shape != theirs.shape:
        raise InputError(
            f"--reference={path}: {name} has shape {theirs.shape}, this network gives {ours.shape}"
        )
    theirs = theirs.astype(np.float64)
    scale = np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / max(scale, np.finfo(np.float32).tiny))
