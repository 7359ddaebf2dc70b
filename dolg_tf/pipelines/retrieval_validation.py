"""Retrieval validation: during training, the network searches a set with a ground truth."""

import pathlib
import typing
from collections.abc import Iterator

import numpy as np

from dolg_tf.evaluation.revisited import score
from dolg_tf.retrieval.extract import ahead, batches
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.photos import Photo, PhotosConfig, list_photos
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.tuples.config import TuplesTraining

if typing.TYPE_CHECKING:  # it imports TensorFlow
    import keras

BATCH = 16  # photos of equal size that go through the network together


class RetrievalValidation:
    """Function of a network to its scores on a retrieval set, for `training.loop.train`.

    The scores are those of export, extraction at scale 1 and evaluation, without their files:
    queries are cut to their boxes, photos shrunk to `retrieval_image_size`, descriptors searched
    exactly. It runs on one device; with several workers, each does all of it.

    Construction reads the ground truth and checks that the photos are there, without TensorFlow.

    Args:
      training: `retrieval_ground_truth`, `retrieval_image_root`, `retrieval_image_size`.

    Raises:
      InputError: when the ground truth cannot be read, no query has a positive, or a photo is
        missing.
    """

    def __init__(self, training: TrainingConfig | TuplesTraining):
        path = pathlib.Path(training.retrieval_ground_truth)
        self._how = Preparation(training.retrieval_image_size)
        root = pathlib.Path(training.retrieval_image_root or path.parent)
        if not path.is_file() or path.suffix not in (".pkl", ".mat"):
            raise InputError(f"--retrieval_ground_truth={path}: no such gnd_*.pkl or gnd_*.mat")
        if not root.is_dir():
            raise InputError(f"--retrieval_image_root={root}: no such folder")
        self._task = load_ground_truth(path)
        if not any(query.easy.size + query.hard.size for query in self._task.queries):
            raise InputError(f"--retrieval_ground_truth={path}: no query has a positive photo")
        self._queries, self._index = (_photos(path, root, part) for part in ("query", "index"))
        self._network = self._describe = None

    def __call__(self, network: "keras.Model") -> dict[str, float]:
        """Returns the scores of the revisited protocol, as fractions.

        Args:
          network: float32 RGB in [0, 1], (B, H, W, 3) -> (B, D).

        Returns:
          `mAP` and `mP@1` of the level medium; `mAP_hard` where a query has hard positives.

        Raises:
          InputError: naming the photo that cannot be decoded, or whose box contains no pixel.
        """
        if network is not self._network:  # traced once, for all validations of a run
            self._network, self._describe = network, _describer(network)
        queries, searched = self._descriptors(self._queries), self._descriptors(self._index)
        return self._values(score.score_descriptors(self._task, queries, searched))

    @staticmethod
    def _values(scores: score.RevisitedScores) -> dict[str, float]:
        values = {"mAP": scores.medium.mAP, "mP@1": scores.medium.mP[1]}
        if scores.hard.mAP is not None:
            values["mAP_hard"] = scores.hard.mAP
        return values

    def _descriptors(self, photos: tuple[Photo, ...]) -> np.ndarray:
        """Returns float32 (N, D), unit L2 norm, in the order of the photos."""
        images = enumerate(self._images(photos))
        rows, _ = batches.describe_batches(images, self._describe, len(photos), BATCH)
        return rows

    def _images(self, photos: tuple[Photo, ...]) -> Iterator[np.ndarray]:
        """Yields the photos as the network sees them, uint8 RGB (H, W, 3)."""
        images = ahead.decode_ahead(photos, self._how)
        for image in progress.track(images, len(photos), "retrieval validation"):
            if isinstance(image, str):
                raise InputError(f"unreadable photo {image}; repair it, or leave it out of the set")
            yield image


def _photos(path: pathlib.Path, root: pathlib.Path, subset: str) -> tuple[Photo, ...]:
    """Lists the queries (with their boxes) or the index of a ground truth; none may be missing."""
    settings = PhotosConfig(images=str(path), image_root=str(root), subset=subset, output="")
    photos = list_photos(settings).photos
    missing = [photo.path for photo in photos if not photo.path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(photos)} {subset} photos of {path} are missing, the first is "
            f"{missing[0]}; check --retrieval_image_root"
        )
    return photos


def _describer(network: "keras.Model"):
    """Returns a function of uint8 RGB (B, H, W, 3), any size, to float32 (B, D), unit L2 norm."""
    import tensorflow as tf

    from dolg_tf.serving.graph.pyramid import multi_scale

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def describe(photos):
        return multi_scale(network, photos, tf.constant([1.0]))

    return lambda photos: describe(tf.constant(photos)).numpy()
