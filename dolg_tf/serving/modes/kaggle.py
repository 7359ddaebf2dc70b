"""Mode `kaggle`: the scorer of Kaggle's Landmark Retrieval 2020, one descriptor per photo."""

import pathlib
import zipfile

import keras
import tensorflow as tf

from dolg_tf.serving.config import SUBMISSION, ExportConfig
from dolg_tf.serving.graph import pyramid
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.saved_model import LOAD_MODEL_AND_PHOTO, Functions, Inside, SavedModelMode
from dolg_tf.serving.verify import Check, Reference, random_photos

_USE = """descriptor = model.signatures["serving_default"](photo)["global_descriptor"]  # (D,)
"""


def functions(network: keras.Model, config: ExportConfig, inside: Inside) -> Functions:
    """One descriptor per photo, at the scales of the configuration."""
    folded = FoldedNetwork(network)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, "input_image")], autograph=False
    )
    def describe(input_image):
        scales = tf.constant(config.scales, tf.float32)
        rows = pyramid.whitened(folded, input_image[None], scales, inside.whitening)
        return {"global_descriptor": rows[0]}

    return {"serving_default": describe}


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> list[Check]:
    reference, checks = Reference(network, inside.whitening), []
    for photo in random_photos():
        expected = {"global_descriptor": reference.descriptors(photo[None], config.scales)[0]}
        checks.append(Check("serving_default", {"input_image": photo}, expected))
    return checks


def _add_files(folder: pathlib.Path, config: ExportConfig) -> None:
    """Writes the submission: the model's files at the root of the archive."""
    if not config.zip:
        return
    members = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(folder / SUBMISSION, "w") as archive:
        for file in members:
            archive.write(file, file.relative_to(folder))


MODE = SavedModelMode(
    functions=functions,
    checks=_checks,
    words=Words(use=LOAD_MODEL_AND_PHOTO + _USE),
    add_files=_add_files,
)
