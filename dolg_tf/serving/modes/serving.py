"""Mode `serving`: encoded photos, pixels, and what the network saw in a photo.

Extraction, report, demo and TF Serving call it.
"""

import zlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.data import photo_files
from dolg_tf.data.images import to_float
from dolg_tf.modeling.dolg import has_local_branch, intermediates
from dolg_tf.modeling.layers import fuse
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph import local_features, pyramid, requests
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.local_reference import LIMITS, LocalReference
from dolg_tf.serving.local_reference import SCALES as LOCAL_SCALES
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.saved_model import LOAD_MODEL_AND_PHOTO, Functions, Inside, SavedModelMode
from dolg_tf.serving.server_files import write_server_files
from dolg_tf.serving.verify import Check, Reference, random_photos

# A chunk that says "turned by 6", and where in a PNG it goes.
_TURNED, _PNG_HEAD = 6, 33
_EXIF = b"\0\0\0\x1aeXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
_EXIF += zlib.crc32(_EXIF[4:]).to_bytes(4)
_PHOTO = tf.TensorSpec([None, None, 3], tf.uint8, "image")
_USE = """found = model.signatures["images"](images=photo[None], scales=tf.constant(SCALES))
descriptor = found["descriptors"][0]  # (D,)
"""

# --- signatures -----------------------------------------------------------------------------


def functions(network: keras.Model, config: ExportConfig, inside: Inside) -> Functions:
    """Encoded photos, pixels, local features; with a local branch, also maps of one photo."""
    folded, whitening = FoldedNetwork(network), inside.whitening
    width = network.output_shape[-1] if whitening is None else whitening.projection.shape[1]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
            tf.TensorSpec([None], tf.float32, "scales"),
        ],
        autograph=False,
    )
    def images(images, scales):
        return {"descriptors": pyramid.whitened(folded, images, scales, whitening)}

    describe = images.get_concrete_function()  # traced once for both signatures

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def encoded(image_bytes):
        scales = tf.constant(config.scales, tf.float32)
        return requests.describe_encoded(
            lambda photos: describe(photos, scales)["descriptors"],
            image_bytes,
            config.max_pixels,
            width,
            config.upright,
        )

    @tf.function(
        input_signature=[_PHOTO, *local_features.specs("scales", "max_features", "threshold")],
        autograph=False,
    )
    def local(image, scales, max_features, threshold):
        found = local_features.of_photo(folded, image, scales, max_features, threshold)
        return {
            "positions": found.positions,
            "scales": found.scales,
            "strengths": found.strengths,
            "descriptors": local_features.unit(folded, found.features, inside.reduction),
        }

    functions = {"serving_default": encoded, "images": images, "local": local}
    if has_local_branch(network):
        functions |= _of_local_branch(folded.intermediates)
    return functions


def _of_local_branch(intermediates: Callable[[tf.Tensor], dict]) -> Functions:
    """Returns the signatures of one photo that a network with a local branch has."""

    def signature(of: Callable[[dict], dict]):
        return tf.function(
            lambda image: of(intermediates(to_float(image)[None])),
            input_signature=[_PHOTO],
            autograph=False,
        )

    return {name: signature(of) for name, of in _LOCAL_SIGNATURES.items()}


def _maps(outputs: dict) -> dict:
    """Returns the maps of the local branch, float32 (h, w) at the stride of the local features.

    Args:
      outputs: of `dolg.intermediates` for one photo.

    Returns:
      attention: weight of each local feature, above 0;
      orthogonal_norm: L2 norm of its part orthogonal to the global feature;
      explained_energy: share of its squared norm that the global feature explains, in [0, 1].
    """
    f_local = outputs["local"]  # (1, h, w, C)
    orthogonal = fuse("orthogonal", f_local, outputs["global"])
    left = tf.reduce_sum(tf.square(orthogonal), -1)[0]
    energy = tf.reduce_sum(tf.square(f_local), -1)[0]
    explained = 1.0 - tf.math.divide_no_nan(left, energy)
    return {
        "attention": outputs["attention"][0, :, :, 0],
        "orthogonal_norm": tf.sqrt(left),
        "explained_energy": tf.clip_by_value(explained, 0.0, 1.0),
    }


def _local_features(outputs: dict) -> dict:
    """Returns the local features as the fusion sees them.

    Args:
      outputs: of `dolg.intermediates` for one photo.

    Returns:
      `features`, float32 (h, w, C): unit vectors times the attention of `maps`; without attention,
      of the length that the batch norm gives them. A network with two local branches gives those of
      the finer one.
    """
    return {"features": outputs["local"][0]}


_LOCAL_SIGNATURES = {"maps": _maps, "local_features": _local_features}


# --- checks ---------------------------------------------------------------------------------


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> Iterator[Check]:
    reference, checks = Reference(network, inside.whitening), []
    scales = np.asarray(config.scales, np.float32)
    for photos in random_photos(2):
        expected = {"descriptors": reference.descriptors(photos, scales)}
        checks.append(Check("images", {"images": photos, "scales": scales}, expected))
        yield checks[-1]
    yield _check_of_encoded(checks, reference, config)
    yield from _checks_of_local(network, inside)
    if has_local_branch(network):
        named = intermediates(network)
        for photo in random_photos():
            outputs = named(to_float(tf.constant(photo))[None])  # once for both signatures
            for signature, of in _LOCAL_SIGNATURES.items():
                expected = {name: array.numpy() for name, array in of(outputs).items()}
                yield Check(signature, {"image": photo}, expected)


def _checks_of_local(network: keras.Model, inside: Inside) -> Iterator[Check]:
    reference = LocalReference(network, inside.reduction)
    for photo in random_photos():
        for limit, compared in LIMITS.items():
            expected = reference.found(photo, LOCAL_SCALES, limit)
            del expected["boxes"]
            values = (photo, LOCAL_SCALES, np.asarray(limit, np.int32), np.float32(0))
            names = ("image", "scales", "max_features", "threshold")
            yield Check("local", dict(zip(names, values, strict=True)), expected, compared)


def _check_of_encoded(checks: list[Check], reference: Reference, config: ExportConfig) -> Check:
    """Returns a check of photos of all sizes in one request.

    Among them are one that EXIF turns, which must be described as the export promises, and one that
    cannot be decoded.
    """
    pixels = [check.inputs["images"][0] for check in checks]
    rows = [check.expected["descriptors"][0] for check in checks]
    photos = [tf.io.encode_png(photo).numpy() for photo in pixels]
    largest = max(pixels, key=np.size)
    turned = photo_files.turn(largest, _TURNED) if config.upright else largest
    rows.append(reference.descriptors(turned[None], np.asarray(config.scales, np.float32))[0])
    png = tf.io.encode_png(largest).numpy()
    photos.append(png[:_PNG_HEAD] + _EXIF + png[_PNG_HEAD:])
    expected = {
        "descriptors": np.stack([*rows, np.zeros_like(rows[0])]),
        "status": np.asarray([requests.OK] * len(rows) + [requests.UNDECODABLE], np.int32),
    }
    image_bytes = np.asarray([*photos, b"no photo"], object)
    return Check("serving_default", {"image_bytes": image_bytes}, expected)


MODE = SavedModelMode(
    functions=functions,
    checks=_checks,
    words=Words(use=LOAD_MODEL_AND_PHOTO + _USE),
    runner=None,
    add_files=lambda path, config: write_server_files(path),
)
