"""A joint colour histogram: the simplest descriptor, which a learned one must beat."""

import dataclasses

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.extract.photos import PhotosConfig
from dolg_tf.retrieval.extract.stage import describe_photos

BINS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourHistogramConfig(PhotosConfig):
    """Which photos are described by their colours."""


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Returns the square roots of joint RGB histograms.

    The inner product of two rows is the Bhattacharyya coefficient of the colour distributions.

    Args:
      images: uint8 RGB (B, H, W, 3).

    Returns:
      float32 (B, 512), unit L2 norm: 8 bins each of red, green and blue, blue varying fastest.
    """
    red, green, blue = np.moveaxis(images.astype(np.int32) * BINS // 256, -1, 0)
    bins = ((red * BINS + green) * BINS + blue).reshape(len(images), -1)
    counts = np.stack([np.bincount(row, minlength=BINS**3) for row in bins])
    return np.sqrt(counts / bins.shape[1]).astype(np.float32)


DESCRIBER = Describer(
    f"colour_histogram_{BINS}x{BINS}x{BINS}", (1.0,), None, lambda: colour_histograms
)


def extract_colour_histograms(settings: ColourHistogramConfig) -> descriptors.DescriptorSet:
    """Describes photos by their colours: photos in, a descriptor set out.

    List, boxes and files are those of `extract`, so the set is scored in the same way.
    """
    return describe_photos(settings, DESCRIBER)
