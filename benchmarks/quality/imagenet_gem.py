"""Retrieval with ImageNet weights alone: plain GeM on the stride-32 maps of EfficientNet-Lite.

    DOLG_REAL_PHOTOS=folder python benchmarks/quality/imagenet_gem.py

The folder holds photos and a labels.csv with the columns path, landmark and split. Queries are
searched in the index. Nothing is trained: a descriptor is GeM (p = 3) of one map of a photo, which
is stretched to a square. Prints one table: mAP over the whole ranking and recall at 1, in percent.
"""

import dataclasses
import os
import pathlib
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from photo_scores import percent_scores

from dolg_tf.data import images
from dolg_tf.data.own_photos import read_labels
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.layers import GeM, l2_normalize
from dolg_tf.weights import imagenet

SIDE = 288  # pixels
BATCH = 16
MAPS = ("last_block", "top_conv")


def build_gem(name: str, weights: str) -> keras.Model:
    """Returns a model from photos (B, H, W, 3) to unit descriptors (B, C) for each of `MAPS`."""
    config = DolgConfig(backbone=name, stride32="top_conv", fusion="global_only")
    config = dataclasses.replace(config, preprocessing=imagenet.preprocessing(weights, config))
    network = build_dolg(config, seed=0)
    imagenet.load_backbone(network, weights)
    backbone = network.get_layer("backbone")
    maps = [backbone.get_layer("top_conv").input, backbone.outputs[-1]]
    image = keras.Input((None, None, 3))
    found = keras.Model(backbone.input, maps)(network.get_layer("normalization")(image))
    return keras.Model(image, [l2_normalize(GeM(3.0)(x)) for x in found])


def describe(model: keras.Model, paths: list[pathlib.Path]) -> list[np.ndarray]:
    """Returns descriptors (N, C) of the photos, for each of `MAPS`."""

    def load(path):
        return images.resize_levels(images.decode(tf.io.read_file(path)), SIDE, SIDE)

    photos = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    batches = photos.map(load, num_parallel_calls=2).batch(BATCH).prefetch(2)
    compute = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    rows = [[np.asarray(x) for x in compute(batch)] for batch in batches]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def measure(folder: pathlib.Path, name: str, weights: str) -> dict[str, tuple[float, float]]:
    """Returns {map: (mAP, recall at 1)} of a backbone on the photos of a folder."""
    labels = read_labels(folder / "labels.csv")
    model = build_gem(name, weights)
    found = {
        split: describe(model, [folder / path for path, _ in labels[split]])
        for split in ("query", "index")
    }
    landmarks = [[landmark for _, landmark in labels[split]] for split in ("query", "index")]
    return {
        which: percent_scores(queries, index, *landmarks)
        for which, queries, index in zip(MAPS, found["query"], found["index"], strict=True)
    }


def main() -> None:
    if "DOLG_REAL_PHOTOS" not in os.environ:
        sys.exit("set DOLG_REAL_PHOTOS to a folder of photos with a labels.csv")
    folder = pathlib.Path(os.environ["DOLG_REAL_PHOTOS"])
    print("| backbone, weights | map | mAP | R@1 |")
    print("| --- | --- | --- | --- |")
    for name in imagenet.LITE_FILES:
        for weights in (name, imagenet.NONE):
            for which, (precision, recall) in measure(folder, name, weights).items():
                print(f"| {name}, {weights} | {which} | {precision:.1f} | {recall:.1f} |")


if __name__ == "__main__":
    main()
