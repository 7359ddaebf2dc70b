"""A SavedModel with the signatures of mode `serving` that describes photos by their colours."""

import json
import pathlib

import tensorflow as tf

from dolg_tf.serving.graph.local_selection import Maps, select

SCALES = (0.5, 1.0)
LOCAL = ("maps", "local_features")


def _features(image):
    """Mean colours of cells of 16 x 16 pixels; grey is 0."""
    cells = tf.nn.avg_pool2d(tf.cast(image, tf.float32)[None], 16, 16, "SAME")
    return cells[0] / 127.5 - 1.0


def _local(image, scales, max_features, threshold):
    """The cells of the photo at each scale."""
    floats, sides = tf.cast(image, tf.float32), tf.cast(tf.shape(image)[:2], tf.float32)

    def maps_at(_, scale):
        size = tf.maximum(tf.cast(tf.round(scale * sides), tf.int32), 1)
        features = _features(tf.image.resize(floats, size))
        return Maps(features, tf.norm(features, axis=-1), tf.zeros([0, 0]))

    found = select(maps_at, scales, max_features, threshold, stride=16, widths=(3, 0))
    return {
        "positions": found.positions,
        "scales": found.scales,
        "strengths": found.strengths,
        "descriptors": tf.math.l2_normalize(found.features, axis=-1),
    }


def save(path: pathlib.Path, local: tuple[str, ...] = LOCAL) -> pathlib.Path:
    """Writes it, with the signatures `local` for single photos."""
    photo = tf.TensorSpec([None, None, 3], tf.uint8, "image")
    photos = tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
    scales = tf.TensorSpec([None], tf.float32, "scales")

    def images(images, scales):
        rows = tf.map_fn(lambda image: tf.reduce_mean(_features(image), (0, 1)), images, tf.float32)
        return {"descriptors": tf.math.l2_normalize(rows * tf.reduce_sum(scales), axis=-1)}

    def maps(image):
        attention = tf.norm(_features(image), axis=-1)
        names = ("attention", "orthogonal_norm", "explained_energy")
        return dict.fromkeys(names, attention)

    numbers = [scales, *(tf.TensorSpec([], dtype) for dtype in (tf.int32, tf.float32))]
    one = {
        "maps": (maps, [photo]),
        "local_features": (lambda image: {"features": _features(image)}, [photo]),
        "local": (_local, [photo, *numbers]),
    }
    functions = {"images": tf.function(images, input_signature=[photos, scales])}
    for name in local:
        functions[name] = tf.function(one[name][0], input_signature=one[name][1])
    tf.saved_model.save(tf.Module(), str(path), functions)
    about = {"format_version": 1, "scales": SCALES, "weights_sha256": "abc", "whitening": None}
    (path / "assets.extra").mkdir()
    (path / "assets.extra/dolg.json").write_text(json.dumps(about))
    return path
