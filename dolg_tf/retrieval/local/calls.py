"""How a SavedModel is asked for local features: our signature `local`, and DELF's and DELG's own.

DELF's extractors give regions and features as the network makes them; ours give their centres and
unit vectors.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.runtime.signatures import Signature

INDICES = "input_global_scales_ind"  # of the scales at which the whole photo is described too
_OURS = ("image", "scales", "max_features", "threshold")
_DELG = ("input_image", "input_scales", "input_max_feature_num", "input_abs_thres")
_EPSILON = 1e-12


class LocalCall(NamedTuple):
    """A signature that gives local features.

    Attributes:
      signature: its name.
      names: of its inputs: photo, scales, most features, least strength.
      indices: whether it has DELG's input of scales for the whole photo.
    """

    signature: str
    names: tuple[str, str, str, str]
    indices: bool

    def inputs(
        self, image: np.ndarray, scales: Sequence[float], max_features: int, threshold: float
    ) -> dict[str, np.ndarray]:
        """Returns its inputs by name, for a photo, uint8 RGB (H, W, 3)."""
        values = (
            image,
            np.asarray(scales, np.float32),
            np.asarray(max_features, np.int32),
            np.asarray(threshold, np.float32),
        )
        found = dict(zip(self.names, values, strict=True))
        return found | ({INDICES: np.zeros(0, np.int32)} if self.indices else {})

    def features(self, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> LocalFeatures:
        """Returns what its outputs say of a photo of this height and width."""
        if self.signature == "local":
            names = ("positions", "scales", "strengths", "descriptors")
            return LocalFeatures(*(outputs[name] for name in names), size)
        boxes, rows = outputs["boxes"], outputs["features"]
        norms = np.sqrt(np.maximum((rows * rows).sum(1, keepdims=True), _EPSILON))
        return LocalFeatures(
            positions=(boxes[:, :2] + boxes[:, 2:]) / 2,
            scales=outputs["scales"],
            strengths=outputs["scores"].reshape(-1),
            descriptors=rows / norms,
            size=size,
        )


def find_call(signatures: Mapping[str, Signature]) -> LocalCall | None:
    """Returns how a SavedModel is asked for local features; None: it gives none."""
    if "local" in signatures:
        return LocalCall("local", _OURS, False)
    call = signatures.get("serving_default", Signature({}, {}))
    if not {"boxes", "features", "scales", "scores"} <= set(call.outputs):
        return None
    more = set(call.inputs) - set(_DELG)
    if not set(_DELG) <= set(call.inputs) or more - {INDICES}:
        return None
    return LocalCall("serving_default", _DELG, bool(more))
