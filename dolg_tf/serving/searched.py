"""The photos that mode `search` finds, as plain data: no index is read here."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dolg_tf.runtime.whitening import Whitening
from dolg_tf.stage.config import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """Photos, their descriptors, and how those were made.

    Attributes:
      rows: float32 or float16 (N, D), read by slices; in the order in which equal scores are
        ranked.
      dtype: in which the model keeps them, "float32" or "float16".
      ids: of the photos.
      landmarks: of the photos, "" where it is not known; None: of none.
      threshold: the lowest score of a match; None: not known.
      k: photos found per photo, at most N.
      max_side: photos are shrunk to this longest side, in pixels; 0: they are not.
      longest: what no row's norm exceeds.
      source: where they come from, for errors.
      model_hash: of the model that described them.
      whitened: the SHA-256 of the whitening that was applied to its descriptors afterwards; "":
        none was.
      about: for `dolg.json`.
    """

    rows: Any
    dtype: str
    ids: Sequence[str]
    landmarks: Sequence[str] | None
    threshold: float | None
    k: int
    max_side: int
    longest: float
    source: str
    model_hash: str
    whitened: str
    about: dict

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the model."""
        names = (*self.ids, *(self.landmarks or ()))
        width = self.rows.shape[1] * (2 if self.dtype == "float16" else 4)
        return len(self.ids) * width + sum(len(name.encode()) + 8 for name in names)

    def check_model(
        self, source: str, plain: str, with_whitening: str, whitening: Whitening | None
    ) -> None:
        """Makes sure that a model describes photos as these were described.

        Args:
          source: what is exported, for the error.
          plain: hash of the model without the whitening.
          with_whitening: and with it.
          whitening: inside the model.

        Raises:
          InputError: when it does not.
        """
        found = "" if whitening is None else whitening.sha256
        if self.whitened and found != self.whitened:
            raise InputError(
                f"{self.source} has descriptors that `dolg whiten apply` whitened by a file of "
                f"SHA-256 {self.whitened}; give that file as --whitening"
            )
        expected = plain if self.whitened else with_whitening
        if self.model_hash != expected:
            raise InputError(
                f"{self.source} is of model {self.model_hash}, {source} is {expected}; export the "
                "model that described its photos, with the same --precision and --whitening, or "
                "rebuild the index"
            )
