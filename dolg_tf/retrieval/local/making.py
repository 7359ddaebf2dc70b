"""How extraction makes local features: what the options ask, and what the model says."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dolg_tf.retrieval.local.feature_set import LOCAL_DTYPES
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.runtime.whitening import Whitening, load_whitening
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option

LocalOf = Callable[[np.ndarray, Sequence[float], int, float], LocalFeatures]
"""uint8 RGB (H, W, 3), scales, most features and threshold -> features in pixels of that image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Whether local features are extracted beside the descriptors, and which."""

    local: bool = option(
        "also extract local features, into OUTPUT.local beside the descriptor set, decoding each "
        "photo once",
        False,
    )
    local_scales: tuple[float, ...] = option(
        "scales at which local features are found; empty: those of the model", ()
    )
    max_features: int = option("strongest local features to keep of a photo", 1000)
    local_threshold: float | None = option(
        "least strength of a local feature; unset: that of the model", None
    )
    local_dtype: str = option(
        "number format of the stored local descriptors; bits: the signs alone, 1/16 of float16",
        "float16",
        choices=LOCAL_DTYPES,
    )
    local_reduction: str = option(
        ".npz of `dolg whiten fit --local` by which local descriptors are reduced; empty: none", ""
    )

    def __post_init__(self):
        at_least(self, max_features=1)
        if any(not 0 < scale < math.inf for scale in self.local_scales):
            told = ",".join(map(str, self.local_scales))
            raise InputError(f"--local_scales={told}: each must be positive")
        if self.local_threshold is not None and not math.isfinite(self.local_threshold):
            raise InputError(f"--local_threshold={self.local_threshold} must be a number")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not self.local and value != field.default:
                raise InputError(f"--{field.name} is for local features; give --local too")


@dataclasses.dataclass(frozen=True)
class LocalMaking:
    """How the local features of a set are made.

    Attributes:
      kind: of the model's local features, such as "delg".
      scales, max_features, threshold: what the model is called with.
      dtype: of the stored descriptors.
      reduction: SHA-256 of what reduces descriptors, in the model or after it; None: nothing does.
      reduced_by: applied after the model; None: nothing is.
    """

    kind: str
    scales: tuple[float, ...]
    max_features: int
    threshold: float
    dtype: str
    reduction: str | None
    reduced_by: Whitening | None = None

    def meta(self) -> dict:
        """Returns what `meta.json` of the set says of it, but for `dimensions`."""
        return {
            "kind": self.kind,
            "scales": list(self.scales),
            "max_features": self.max_features,
            "threshold": self.threshold,
            "dtype": self.dtype,
            "reduction": self.reduction,
            "whitening": None,
        }

    def features(
        self, local_of: LocalOf, image: np.ndarray, size: tuple[int, int]
    ) -> LocalFeatures:
        """Returns the local features of a photo.

        Args:
          local_of: the model.
          image: uint8 RGB (H, W, 3), the photo as it is described.
          size: height and width before it was shrunk, in whose pixels the positions are.

        Raises:
          MemoryError: when the photo is too large for the memory.
        """
        found = local_of(image, self.scales, self.max_features, self.threshold)
        factors = np.divide(size, image.shape[:2]).astype(np.float32)
        rows = found.descriptors
        if self.reduced_by is not None:
            rows = self.reduced_by.apply(rows)
        return dataclasses.replace(
            found, positions=found.positions * factors, descriptors=rows, size=tuple(size)
        )


def making(
    settings: LocalConfig, about: dict | None, saved_model: files.Path, model_hash: str
) -> LocalMaking:
    """Returns how local features are made, before the model is loaded.

    Args:
      settings: the options.
      about: what the model's `dolg.json` says of its local features; None: nothing, as that of a
        DELG extractor which is not ours.
      saved_model: its path, for errors.
      model_hash: identifies the model.

    Raises:
      InputError: when scales or threshold are not known, or the reduction does not fit.
    """
    about = about or {"kind": "delg"}
    scales = settings.local_scales or tuple(about.get("scales") or ())
    threshold = settings.local_threshold
    threshold = about.get("threshold") if threshold is None else threshold
    if not scales or threshold is None:
        lacking = "--local_threshold" if scales else "--local_scales"
        raise InputError(
            f"--saved_model={saved_model} does not say how its local features are found; give "
            f"{lacking}, or export it again with `dolg export`"
        )
    inside = about.get("reduction")
    reduction, reduced_by = inside["sha256"] if inside else None, None
    if settings.local_reduction:
        if inside:
            raise InputError(
                f"--local_reduction={settings.local_reduction}: {saved_model} holds a reduction of "
                "its local features already; leave it out"
            )
        if "dimensions" not in about:
            raise InputError(
                f"--local_reduction={settings.local_reduction}: {saved_model} does not say how "
                "long its local descriptors are; reduce the set by `dolg whiten apply --local`"
            )
        flag = "--local_reduction"
        reduced_by = load_whitening(settings.local_reduction, about["dimensions"], flag)
        reduced_by.check_model(settings.local_reduction, saved_model, model_hash, flag=flag)
        reduction = reduced_by.sha256
    return LocalMaking(
        about["kind"],
        tuple(scales),
        settings.max_features,
        float(threshold),
        settings.local_dtype,
        reduction,
        reduced_by,
    )
