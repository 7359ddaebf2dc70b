"""What of a training's inputs can be checked at once, without TensorFlow."""

import pathlib

from dolg_tf.modeling.files.config_file import has_begun
from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.training.tuples.photos import read_photos
from dolg_tf.weights import published


def check_inputs(data: TuplesData, training: TuplesTraining) -> None:
    """Looks for photos and weights, as far as that can be done at once.

    Raises:
      InputError: naming what is not there.
    """
    if pathlib.Path(training.logdir).is_file():
        raise InputError(f"--logdir={training.logdir} is a file; give a folder, or a new name")
    read_photos(data)
    if training.backbone_weights != published.NONE and not has_begun(training.logdir):
        published.find_file(training.backbone_weights)
