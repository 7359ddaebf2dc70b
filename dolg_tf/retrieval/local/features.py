"""The local features of one photo."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LocalFeatures:
    """Local features of a photo, the strongest first.

    Attributes:
      positions: float32 (N, 2), row and column (y, x) in pixels of the photo: of one cut to a box,
        from the corner of the box, and before it was shrunk.
      scales: float32 (N,), 1 / s at scale s of the image pyramid: how much larger than at scale 1
        the region is that a feature describes.
      strengths: float32 (N,), the attention, or what the network has in its place; falling.
      descriptors: float32 (N, D), rows of unit L2 norm.
      size: height and width of the photo, in the pixels of `positions`.
    """

    positions: np.ndarray
    scales: np.ndarray
    strengths: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.strengths)
