"""Retrieval with ImageNet weights alone: plain GeM on the stride-32 maps of EfficientNet-Lite.

    DOLG_REAL_PHOTOS=folder python benchmarks/quality/imagenet_gem.py

The folder holds photos and a labels.csv with the columns path, landmark and split. Queries are
searched in the index. Nothing is trained: a descriptor is GeM (p = 3) of one map of a photo, which
is stretched to a square. Prints one table: mAP over the whole ranking and recall at 1, in percent.
"""

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
from dolg_tf.weights.published import LITE_FILES, NONE
from dolg_tf.weights.ready import build_gem

SIDE = 288  # pixels
BATCH = 16
MAPS = ("last_block", "top_conv")


def describe(network: keras.Model, paths: list[pathlib.Path]) -> np.ndarray:
    """Returns unit descriptors (N, C) of the photos."""

    def load(path):
        return images.resize_levels(images.decode(tf.io.read_file(path)), SIDE, SIDE)

    photos = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    batches = photos.map(load, num_parallel_calls=2).batch(BATCH).prefetch(2)
    compute = tf.function(lambda x: network(x, training=False), reduce_retracing=True)
    rows = np.concatenate([compute(batch) for batch in batches])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(
    folder: pathlib.Path, name: str, weights: str, which: str = "top_conv"
) -> tuple[float, float]:
    """Returns mAP and recall at 1 of a map of a backbone, on the photos of a folder."""
    labels = read_labels(folder / "labels.csv")
    network = build_gem(name, weights, which, {}).network
    split = [labels["query"], labels["index"]]
    found = [describe(network, [folder / path for path, _ in listed]) for listed in split]
    landmarks = [[landmark for _, landmark in listed] for listed in split]
    return percent_scores(*found, *landmarks)


def main() -> None:
    if "DOLG_REAL_PHOTOS" not in os.environ:
        sys.exit("set DOLG_REAL_PHOTOS to a folder of photos with a labels.csv")
    folder = pathlib.Path(os.environ["DOLG_REAL_PHOTOS"])
    print("| backbone, weights | map | mAP | R@1 |")
    print("| --- | --- | --- | --- |")
    for name in LITE_FILES:
        for weights in (name, NONE):
            for which in MAPS:
                precision, recall = measure(folder, name, weights, which)
                print(f"| {name}, {weights} | {which} | {precision:.1f} | {recall:.1f} |")


if __name__ == "__main__":
    main()
