"""The local features of one photo."""

import dataclasses

import numpy as np

_ROUNDING = 2e-3  # float16 rounds a norm by 5e-4
_LEAST = 1e-12  # what a norm is taken for


@dataclasses.dataclass(frozen=True)
class LocalFeatures:
    """Local features of a photo, the strongest first.

    Attributes:
      positions: float32 (N, 2), row and column (y, x) in pixels of the photo: of one cut to a box,
        from the corner of the box, and before it was shrunk.
      scales: float32 (N,), 1 / s at scale s of the image pyramid: how much larger than at scale 1
        the region is that a feature describes.
      strengths: float32 (N,), the attention, or what the network has in its place; falling.
      descriptors: float32 (N, D), rows of unit L2 norm; HOW's, of kind "how", as ASMK needs them:
        of any length, until they are reduced.
      size: height and width of the photo, in the pixels of `positions`.
    """

    positions: np.ndarray
    scales: np.ndarray
    strengths: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]

    @property
    def directions(self) -> np.ndarray:
        """The descriptors with unit L2 norm; rows of zeros stay zero."""
        norms = np.sqrt(np.einsum("nd,nd->n", self.descriptors, self.descriptors))
        if (abs(norms - 1) < _ROUNDING).all():
            return self.descriptors
        return self.descriptors / np.maximum(norms, _LEAST)[:, None]

    def __len__(self) -> int:
        return len(self.strengths)
