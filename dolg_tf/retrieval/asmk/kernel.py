"""What ASMK's variants do differently: bits, similarity at a word, normalisation, no features.

Reference: Tolias, Avrithis and Jégou, "To aggregate or not to aggregate: selective match kernels
for image search", 2013, equations 10 to 14; binary and with HOW: Tolias, Jenicek and Chum,
"Learning and aggregating deep local descriptors for instance-level recognition", 2020; by regions:
Teichmann et al., "Detect-to-retrieve", 2019.
"""

import dataclasses

import numpy as np

from dolg_tf.stage.config import InputError

# D2R drops words whose residuals cancel out; the asmk package keeps them.
_LEAST_NORM = 1e-6


@dataclasses.dataclass(frozen=True)
class Variant:
    """Whose ASMK it is.

    Attributes:
      pad: the B bits of a similarity are the next multiple of this number from D on. Padding bits
        are equal in all images, so it makes unlike ones more alike.
      inclusive: whether a similarity equal to the threshold counts.
      raw_regions: whether the similarity of images aggregated by regions is a sum that is not
        divided by anything.
      empty: the score where query or image has no features.
    """

    pad: int
    inclusive: bool
    raw_regions: bool
    empty: float


VARIANTS = {
    "dolg": Variant(pad=1, inclusive=True, raw_regions=False, empty=0.0),
    # The asmk package, as the evaluation of HOW runs it.
    "how": Variant(pad=32, inclusive=True, raw_regions=False, empty=0.0),
    # DELF's feature_aggregation_*.py. Its R-ASMK is compared without normalisation.
    "delf": Variant(pad=8, inclusive=False, raw_regions=True, empty=-1.0),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How the residuals of an image at a word are stored, and two of them compared.

    Attributes:
      variant: one of `VARIANTS`.
      dimensions: D, of a descriptor.
      binary: whether the signs of the residuals are kept, instead of unit vectors.
      alpha: exponent of a similarity.
      threshold: similarities below do not count.
    """

    variant: str
    dimensions: int
    binary: bool = True
    alpha: float = 3.0
    threshold: float = 0.0

    def __post_init__(self):
        if self.variant == "how" and self.threshold < 0 and self.alpha % 1:
            raise InputError(
                f"--threshold={self.threshold} with --alpha={self.alpha}: the asmk package takes "
                "powers of negative similarities, which are no numbers; give a whole --alpha"
            )

    @property
    def rules(self) -> Variant:
        """What the variant does differently."""
        return VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """Numbers, or bytes, stored per word of an image."""
        return -(-self.dimensions // 8) if self.binary else self.dimensions

    @property
    def dtype(self) -> np.dtype:
        """Of what is stored."""
        return np.dtype(np.uint8 if self.binary else np.float32)

    def present(self, sums: np.ndarray) -> np.ndarray:
        """Tells at which words an image, given its sums of residuals (W, D), counts: bool (W,)."""
        if self.variant != "delf":
            return np.ones(len(sums), bool)
        return np.linalg.norm(sums, axis=1) > _LEAST_NORM

    def encode(self, sums: np.ndarray) -> np.ndarray:
        """Returns what is stored of sums of residuals, float64 (W, D).

        Returns:
          uint8 (W, ceil(D / 8)), bits that say which are positive, the first dimension in the
          highest bit; or float32 (W, D), unit vectors.
        """
        if self.binary:
            return np.packbits(sums > 0, axis=1)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        norms = np.maximum(norms, _LEAST_NORM) if self.variant == "delf" else norms + 1e-6
        return (sums / norms).astype(np.float32)

    def similarity_of_distances(self) -> np.ndarray:
        """Returns u = 1 - 2 h / B for each Hamming distance h from 0 to 8 `width`: float64."""
        if self.dimensions < self.rules.pad == 8:
            bits = self.dimensions  # as D2R does
        else:
            bits = self.rules.pad * -(-self.dimensions // self.rules.pad)
        return 1 - 2 * np.arange(8 * self.width + 1) / bits

    def select(self, u: np.ndarray) -> np.ndarray:
        """Returns sigma(u): sign(u) |u|^alpha from the threshold on, else 0."""
        counts = u >= self.threshold if self.rules.inclusive else u > self.threshold
        if self.variant == "how":  # u^alpha, which differs where u < 0 and alpha is even
            return np.power(u, self.alpha, where=counts, out=np.zeros_like(u))
        return np.where(counts, np.sign(u) * np.abs(u) ** self.alpha, 0)
