"""Exports that are one file, ONNX and LiteRT: their contract, and how a file is checked.

Both hold one function: `image`, float32 RGB in [0, 1], (B, H, W, 3), of any size, the same for all
photos of a batch -> `descriptor`, float32 (B, D), of unit L2 norm. Channel order, normalisation
and the descriptor's norm are inside. Only D differs between networks.

- One scale: the number of scales is each app's choice between time and accuracy, and mobile
  delegates do not run a loop with a resize in it, which each runtime does in its own way. The
  descriptor at several scales is the mean of those of the resized photo, with unit norm again.
- Floats, not uint8: the authors resize floats for other scales, and rounding them to uint8 would
  move the descriptor. A photo at its own size needs one division by 255.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.model_dir import weights_hash
from dolg_tf.serving import model_card
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.source import load_source
from dolg_tf.stage import config as configs
from dolg_tf.stage import files

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Batch, height and width in pixels.
_SHAPES = ((1, 97, 130), (2, 97, 130), (1, 32, 45), (2, 32, 45), (1, 10, 10))

_LOAD_PHOTO = """import numpy as np
from PIL import Image
{runtime}

photo = np.asarray(Image.open("photo.jpg").convert("RGB"), np.float32)[None] / 255
"""
_SEVERAL = """
All photos of a batch have the same size. For several scales, resize the floats (bilinear, no
antialias, to round(side x scale)), average the descriptors, and normalise the mean again.
"""


def card_words(runtime: str, use: str, library: str) -> model_card.Words:
    """Returns the words of the model card.

    Args:
      runtime: the import of what runs the file.
      use: code that describes `photo`, float32 (1, H, W, 3), with the file NAME.
      library: what runs the file, in the Hub's words.
    """
    return model_card.Words(
        use=_LOAD_PHOTO.format(runtime=runtime) + use,
        after_use=_SEVERAL,
        library=library,
        takes="float32 RGB in [0, 1]",
        after_scores="Measured with these weights as a float32 SavedModel, not with this file.",
    )


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network that is being exported.

    `describe` is the contract as a `tf.function`; `variables` are those that it reads; `about`
    says where it comes from, as plain JSON values.
    """

    describe: tf.types.experimental.PolymorphicFunction
    variables: list[tf.Variable]
    about: dict


@dataclasses.dataclass(frozen=True)
class Distance:
    """The largest distance of a written file from the network over the photos of the check."""

    difference: float
    cosine: float

    def __str__(self):
        return f"largest difference {self.difference:.1e}, smallest cosine {self.cosine:.6f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileMode:
    """An export mode whose output is one file.

    Args:
      form: config -> the entries of `about` on the form of the file, such as its `mode`.
      write: writes the file.
      check: runs the written file; raises RuntimeError when it is too far from the network.
      words: of the model card.
    """

    form: Callable[[ExportConfig], dict]
    write: Callable[[Exported, pathlib.Path], None]
    check: Callable[[Exported, pathlib.Path], Distance]
    words: model_card.Words

    def export(self, config: ExportConfig) -> pathlib.Path:
        """Writes the file, with its model card beside it as FILE.md."""
        output = pathlib.Path(config.output)
        report = model_card.read_report(config.report)
        network, dolg_config, provenance = load_source(config)
        about = self.form(config) | _about(network, dolg_config, provenance)
        card = model_card.card_of(
            output.name, about, self.words, network, dolg_config, config.model_dir, report
        )
        exported = Exported(_describe(network), [v.value for v in network.variables], about)
        with files.atomic_path(output) as temporary:
            self.write(exported, temporary)
            distance = self.check(exported, temporary)
        files.write_text(f"{output}.md", card)
        size = output.stat().st_size
        log.info("exported %s to %s, %s bytes", config.source, output, f"{size:,}")
        log.info("against the network, descriptors of unit norm: %s", distance)
        return output


def _about(network: keras.Model, config: DolgConfig, provenance: dict) -> dict:
    return {
        "format_version": FORMAT_VERSION,
        "preprocessing": configs.to_dict(config.preprocessing),
        "weights_sha256": weights_hash(network, config),
        "provenance": provenance,
    }


def _describe(network: keras.Model) -> tf.types.experimental.PolymorphicFunction:
    """Returns the contract as a graph function."""
    photos = tf.TensorSpec([None, None, None, 3], tf.float32, "image")

    @tf.function(input_signature=[photos], autograph=False)
    def describe(image):
        descriptors = network(image, training=False)
        return {"descriptor": tf.math.l2_normalize(descriptors, axis=-1)}

    return describe


def distance(exported: Exported, run: Callable[[np.ndarray], np.ndarray]) -> Distance:
    """Compares a written file with the network on photos of odd sizes, alone and two at a time.

    Args:
      exported: the network.
      run: the written file, float32 (B, H, W, 3) -> (B, D).

    Raises:
      RuntimeError: when the file's descriptors have another shape or dtype.
    """
    rng, differences, cosines = np.random.default_rng(0), [], []
    for shape in _SHAPES:
        photos = rng.integers(0, 256, (*shape, 3)).astype(np.float32) / 255
        expected, found = exported.describe(photos)["descriptor"].numpy(), run(photos)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise RuntimeError(
                f"descriptors of {photos.shape} are {found.dtype} {found.shape}, not "
                f"{expected.dtype} {expected.shape}"
            )
        differences.append(np.abs(found - expected).max())
        cosines.append((found * expected).sum(-1).min())
    return Distance(float(np.max(differences)), float(np.min(cosines)))
