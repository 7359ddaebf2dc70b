"""Records of small photos, for tests of the input."""

import io

import numpy as np
from PIL import Image

from dolg_tf.data.records import tfrecord

CLASSES, SIZE = 5, 32


def jpeg(number):
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((52, 40)).save(out, "JPEG")
    return out.getvalue()


def example(number, label=1, data=None):
    return tfrecord.encode(data or jpeg(number), f"id{number}", 40, 52, label)
