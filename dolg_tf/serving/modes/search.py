"""Mode `search`: encoded photos in, the nearest photos of an index out; a search server alone."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

# `tf.Variable` refuses to be made while a `tf.function` is traced, unless that is traced twice.
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph import nearest, pyramid, requests
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.saved_model import Functions, Inside, SavedModelMode
from dolg_tf.serving.searched import Searched
from dolg_tf.serving.server_files import write_server_files
from dolg_tf.serving.verify import Check, Reference, random_photos
from dolg_tf.stage import quiet

_BLOCK = 16384  # rows that are copied at a time
_USE = """import pathlib

import tensorflow as tf

model = tf.saved_model.load("NAME")
photo = pathlib.Path("photo.jpg").read_bytes()
found = model.signatures["serving_default"](image_bytes=tf.constant([photo]))
ids, scores = found["ids"][0], found["scores"][0]  # (k,), best first
"""


def functions(network: keras.Model, config: ExportConfig, inside: Inside) -> Functions:
    """Encoded photos -> the nearest photos."""
    folded, whitening, searched = FoldedNetwork(network), inside.whitening, inside.searched
    rows, width = _filled(searched), searched.rows.shape[1]
    names = {"ids": searched.ids, "landmarks": searched.landmarks}
    tables = {key: _strings(words) for key, words in names.items() if words is not None}

    def describe(photos):
        shrunk = shrink(photos[0], searched.max_side) if searched.max_side else photos[0]
        scales = tf.constant(config.scales, tf.float32)
        return pyramid.whitened(folded, shrunk[None], scales, whitening)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def search(image_bytes):
        found = requests.describe_encoded(
            describe, image_bytes, config.max_pixels, width, config.upright
        )
        scores, places = nearest.nearest(rows, searched.longest, found["descriptors"], searched.k)
        known = tf.equal(found["status"], requests.OK)[:, None]
        answer = {"scores": tf.where(known, scores, 0.0), "status": found["status"]}
        for key, words in tables.items():
            answer[key] = tf.where(known, tf.gather(words, places), "")
        if searched.threshold is not None:
            # In float64: rounded to float32, the threshold might be reached by a lower score.
            passed = tf.cast(scores, tf.float64) >= searched.threshold
            answer["match"] = known & passed
        return answer

    return {"serving_default": search}


def shrink(photo: tf.Tensor, max_side: int) -> tf.Tensor:
    """Returns uint8 RGB (H, W, 3), shrunk to a longest side of `max_side` pixels as for an index.

    Pillow's antialiased bilinear filter, to one level of 255; sides are rounded as there.
    """
    sides = tf.cast(tf.shape(photo)[:2], tf.float64)
    factor = tf.minimum(tf.constant(1, tf.float64), max_side / tf.reduce_max(sides))
    size = tf.maximum(1, tf.cast(tf.round(sides * factor), tf.int32))

    def resized():
        levels = tf.image.resize(photo, size, method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(levels), 0, 255), tf.uint8)

    return tf.cond(factor < 1, resized, lambda: tf.identity(photo))


def _filled(searched: Searched) -> tf.Variable:
    """Returns the descriptors as a variable, filled in place: there is one copy of them."""
    dtype = tf.as_dtype(searched.dtype)
    rows = ResourceVariable(tf.zeros(searched.rows.shape, dtype), trainable=False, name="index")
    with quiet.quietly():  # oneDNN says that it leaves half precision to others
        for start in range(0, len(searched.rows), _BLOCK):
            block = np.asarray(searched.rows[start : start + _BLOCK]).astype(searched.dtype)
            rows[start : start + len(block)].assign(block)
    return rows


def _strings(words) -> tf.Variable:
    encoded = np.array([word.encode() for word in words], object)
    return ResourceVariable(tf.constant(encoded, tf.string), trainable=False, name="names")


# --- checks ---------------------------------------------------------------------------------


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> Iterator[Check]:
    """Photos of all sizes and one that cannot be decoded, in one request."""
    searched, reference = inside.searched, Reference(network, inside.whitening)
    photos = random_photos()
    described = [
        reference.descriptors(_shrunk(photo, searched.max_side)[None], config.scales)[0]
        for photo in photos
    ]
    scores, places = _best(searched, np.stack(described))
    known = {id_: row for row, id_ in enumerate(searched.ids)}

    def compared(outputs):
        # Near ties may stand in either order, so it is the found photos' own scores that count.
        rows = [[known[id_.decode()] for id_ in ids] for ids in outputs["ids"][:-1]]
        wide = np.stack([np.asarray(searched.rows[np.array(row)], np.float64) for row in rows])
        own = np.einsum("qkd,qd->qk", wide, np.stack(described)).astype(np.float32)
        named = np.array([sum(map(bool, outputs["ids"][-1]))], np.int32)
        return {
            **{"scores": outputs["scores"], "own scores": own},
            **{"status": outputs["status"], "named": named},
        }

    k = searched.k
    ids = np.array([[searched.ids[row].encode() for row in best] for best in places], object)
    expected = {
        "ids": np.concatenate([ids, np.full((1, k), b"", object)]),
        "scores": np.concatenate([scores, np.zeros((1, k), np.float32)]),
        "status": np.array([requests.OK] * len(photos) + [requests.UNDECODABLE], np.int32),
    }
    others = {"landmarks": searched.landmarks, "match": searched.threshold}
    expected |= {key: np.empty(0) for key, value in others.items() if value is not None}
    encoded = [tf.io.encode_png(photo).numpy() for photo in photos]
    image_bytes = np.array([*encoded, b"no photo"], object)
    yield Check("serving_default", {"image_bytes": image_bytes}, expected, compared)


def _shrunk(photo: np.ndarray, max_side: int) -> np.ndarray:
    return shrink(tf.constant(photo), max_side).numpy() if max_side else photo


def _best(searched: Searched, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best scores and rows, (Q, k), by products of blocks."""
    scores = np.concatenate(
        [
            queries @ np.asarray(searched.rows[start : start + _BLOCK], np.float32).T
            for start in range(0, len(searched.rows), _BLOCK)
        ],
        axis=1,
    )
    places = np.argsort(-scores, axis=1, kind="stable")[:, : searched.k]
    return np.take_along_axis(scores, places, 1), places


MODE = SavedModelMode(
    functions=functions,
    checks=_checks,
    words=Words(
        use=_USE,
        after_use="The index is inside: a new index is a new version of the model.",
    ),
    runner=None,
    add_files=lambda path, config: write_server_files(path, images=False),
)
