"""Validation of HOW's training: the photos are searched by ASMK, as its authors choose the best."""

import pathlib
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dolg_tf.evaluation.revisited import score
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.retrieval import scores
from dolg_tf.retrieval.asmk import stages
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.with_faiss import import_faiss
from dolg_tf.stage import progress
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.training.tuples.photos import read_photos

if typing.TYPE_CHECKING:  # it imports TensorFlow
    import keras

SCALES = (2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25)  # of the authors' evaluation
FEATURES = 1000
CODEBOOK_PHOTOS = 20000  # the first ones, at scale 1

Describe = Callable[[np.ndarray, tuple[float, ...]], LocalFeatures]


class AsmkValidation(RetrievalValidation):
    """Function of a HOW network to its scores on a retrieval set searched by ASMK.

    The scores are those of export, `dolg extract --local`, `dolg asmk` and evaluation; the local
    features of all photos are in a temporary folder meanwhile.

    Construction reads the ground truth and the list of training photos, without TensorFlow.

    Args:
      data: the photos whose features the words are learned from.
      training: `validation_words`, and see `RetrievalValidation`.

    Raises:
      InputError: as `RetrievalValidation`, or when faiss is not installed.
    """

    def __init__(self, data: TuplesData, training: TuplesTraining):
        super().__init__(training)
        import_faiss("a codebook")
        self._words, self._photos = training.validation_words, read_photos(data)

    def __call__(self, network: "keras.Model") -> dict[str, float]:
        """Returns the scores of the revisited protocol, see `RetrievalValidation`.

        Raises:
          InputError: naming a photo that cannot be read; or when the training photos have fewer
            features than words.
        """
        describe = _describer(network)
        with tempfile.TemporaryDirectory(prefix="dolg-asmk-") as folder:
            paths = {name: str(pathlib.Path(folder, name)) for name in ("train", "query", "index")}
            _write(paths["train"], self._training_features(describe))
            for name, photos, ids in (
                ("query", self._queries, self._task.query_ids),
                ("index", self._index, self._task.index_ids),
            ):
                features = (describe(image, SCALES) for image in self._images(photos))
                _write(paths[name], zip(ids, features, strict=True))
            book, index, found = (f"{folder}/{name}" for name in ("words.npz", "asmk", "scores"))
            stages.codebook(
                stages.CodebookConfig(local=paths["train"], words=self._words, output=book)
            )
            stages.build(stages.BuildConfig(local=paths["index"], codebook=book, output=index))
            stages.query(stages.QueryConfig(index=index, local=paths["query"], output=found, k=0))
            return self._values(score.evaluate_scores(self._task, scores.read(found)))

    def _training_features(self, describe: Describe) -> Iterator[tuple[str, LocalFeatures]]:
        count = min(CODEBOOK_PHOTOS, len(self._photos.paths))
        images = progress.track(self._photos.load(range(count)), count, "codebook")
        for number, image in enumerate(images):
            yield str(number), describe(image, (1.0,))


def _write(path: str, features: Iterable[tuple[str, LocalFeatures]]) -> None:
    """Writes a local feature set that lives as long as a validation."""
    keys = ("image_root", "crop", "max_side", "whitening", "reduction", "upright")
    meta = dict.fromkeys(keys) | {"model_hash": "validation", "kind": "how", "bad": []}
    meta |= {"scales": list(SCALES), "threshold": 0.0, "max_features": FEATURES}
    writing.write(path, features, meta)


def _describer(network: "keras.Model") -> Describe:
    """Returns a function of a photo, uint8 RGB (H, W, 3), and scales to its local features.

    The weights are those that the network has now.
    """
    import tensorflow as tf

    from dolg_tf.serving.graph import local_features
    from dolg_tf.serving.graph.folding import FoldedNetwork

    folded = FoldedNetwork(network)
    photo = tf.TensorSpec([None, None, 3], tf.uint8)

    @tf.function(input_signature=[photo, tf.TensorSpec([None], tf.float32)])
    def describe(photo, scales):
        found = local_features.of_photo(folded, photo, scales, FEATURES, 0.0)
        return found.positions, found.scales, found.strengths, found.features

    def described(image: np.ndarray, scales: tuple[float, ...]) -> LocalFeatures:
        found = describe(tf.constant(image), tf.constant(scales))
        return LocalFeatures(*(array.numpy() for array in found), image.shape[:2])

    return described
