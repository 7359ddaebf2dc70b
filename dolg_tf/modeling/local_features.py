"""The local features of a network: what it has instead of one descriptor for the whole photo.

Their kind is
- `delg`: the 128 numbers of DELG's local branch, where there is one (`delg_local`); their strength
  is its attention;
- `dolg`: DOLG's local vector, attention times a unit vector; its strength is its norm;
- `map`: the stride-16 map of a network without such branches; its strength is its norm;
- `how`: HOW's reduced features, whose lengths ASMK needs; their strength is its attention.
"""

import dataclasses

import keras
from keras import ops

from dolg_tf.modeling import how
from dolg_tf.modeling.dolg import MAPS, has_local_branch, local_branches

_STRIDES = dict(zip(MAPS, (8, 16, 32), strict=True))


@dataclasses.dataclass(frozen=True)
class LocalKind:
    """Which local features a network has.

    Attributes:
      name: "delg", "dolg", "map" or "how", see above.
      dimensions: numbers of a feature.
      stride: pixels from one cell to the next, at scale 1.
      unit: whether features are divided by their norm.
      relative: whether strengths are divided by the largest over all scales of a photo.
    """

    name: str
    dimensions: int
    stride: int
    unit: bool = True
    relative: bool = False


def local_kind(network: keras.Model) -> LocalKind:
    """Returns which local features a network of `build_dolg` or `build_how` has."""
    if network.name == "how":
        stride, reduced = how.STRIDES[how.source_of(network)], network.get_layer("reduced")
        return LocalKind("how", reduced.filters, stride, unit=False, relative=True)
    if any(layer.name == "delg" for layer in network.layers):
        return LocalKind("delg", network.get_layer("delg").output[0].shape[-1], _STRIDES["p4"])
    if has_local_branch(network):
        source, suffix = local_branches(network)[0]  # the finer one
        local, _ = network.get_layer(f"local{suffix}").output
        return LocalKind("dolg", local.shape[-1], _STRIDES[source])
    maps = network.get_layer("backbone").outputs
    return LocalKind("map", maps[MAPS.index("p4")].shape[-1], _STRIDES["p4"])


def with_local_features(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and outputs its local features.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of float32 `features` (B, h, w, dimensions), not
      normalised, and `strength` (B, h, w, 1), at least 0.
    """
    kind = local_kind(network).name
    if kind == "how":
        features = network.get_layer("reduced").output
        strength = network.get_layer("attention").output[..., None]
    elif kind == "delg":
        features, strength, _ = network.get_layer("delg").output
    elif kind == "dolg":
        layer = network.get_layer("local")
        features, attention = layer.output
        strength = attention if layer.use_attention else _norm(features)
    else:
        maps = network.get_layer("backbone")(network.get_layer("normalization").output)
        features = ops.cast(maps[MAPS.index("p4")], "float32")
        strength = _norm(features)
    outputs = {"features": features, "strength": strength}
    return keras.Model(network.input, outputs, name="dolg_local_features")


def _norm(features):
    return ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True))
