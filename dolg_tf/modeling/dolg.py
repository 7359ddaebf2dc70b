"""The DOLG network.

    image -> backbone -+- p5 -> GeM -> FC ---------------------- global --+
                       |                                          |       +-> concat -> FC -> 512
                       +- p4 -> multi-atrous -> attention -> local -> orthogonal part, pooled

Without fusion (`fusion=global_only`, DELG's global descriptor): p5 -> GeM -> FC -> descriptor.
With `descriptor_size=0` the last FC is left out.
With `local_source=p4+p5` there are two local branches; their orthogonal parts are concatenated.
With `delg_local`, DELG's local branch stands beside it on p4; see `delg.py`.

Reference: Yang et al., DOLG, ICCV 2021, https://arxiv.org/abs/2108.02927, figure 2. The paper's
f3 is p4 (stride 16) and its f4 is p5 (stride 32).
"""

import dataclasses

import keras

from dolg_tf.modeling import delg, layers
from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.modeling.batch_norm import BatchNormalization
from dolg_tf.modeling.config import DolgConfig

MAPS = ("p3", "p4", "p5")  # of the backbone, by stride: 8, 16, 32


def build_dolg(
    config: DolgConfig, dtype: str | keras.DTypePolicy | None = None, seed: int | None = None
) -> keras.Model:
    """Builds the network with random weights.

    Args:
      config: what to build.
      dtype: dtype policy of the convolutions, such as "mixed_bfloat16"; pooling, fusion and
        the last layers stay in float32. None: Keras' global policy.
      seed: of the initial weights, at least 0; None: another one each time.

    Returns:
      A `keras.Model`: float32 RGB in [0, 1], (B, H, W, 3), of any size -> float32 descriptors
      (B, D), not normalised: the class head and the export divide by the norm. D is
      `descriptor_size`, or if that is 0, as many numbers as the last layer would get.
      Its intermediate results: see `intermediates`.

    Raises:
      InputError: if the backbone does not have the map that `config.stride32` selects.

    Example:
      ```python
      network = dolg_tf.build_dolg(dolg_tf.DolgConfig(backbone="resnet18"), seed=0)
      descriptors = network(numpy.zeros((2, 224, 288, 3), "float32"))  # (2, 512)
      ```
    """
    if seed is not None:
        keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3), name="image")
    x = layers.ChannelNormalization(
        **dataclasses.asdict(config.preprocessing), dtype="float32", name="normalization"
    )(image)
    maps = dict(zip(MAPS, build_backbone(config.backbone, dtype, config.stride32)(x), strict=True))
    p5 = maps["p5"] = keras.layers.Identity(dtype=dtype, name="p5")(maps["p5"])
    if config.fusion == "global_only":
        fused = _global_branch(p5, config, config.local_channels or p5.shape[-1], dtype)
    else:
        channels = config.local_channels or maps["p4"].shape[-1]
        parts = [_global_branch(p5, config, channels, dtype)]
        for source, suffix in _branches(config.local_source):
            if source != "p5":
                maps[source] = keras.layers.Identity(dtype=dtype, name=source)(maps[source])
            f_local = _local_branch(maps[source], config, channels, dtype, suffix)
            fusion = layers.Fusion(
                config.fusion, config.fused_pooling, dtype="float32", name=f"fusion{suffix}"
            )
            parts.append(fusion(f_local, parts[0]))
        fused = keras.layers.Concatenate(dtype="float32", name="fused")(parts)
    descriptor = _neck(fused, config)
    if config.delg_local:
        if "p4" not in config.local_source or config.fusion == "global_only":
            maps["p4"] = keras.layers.Identity(dtype=dtype, name="p4")(maps["p4"])
        local = delg.DelgLocal(dtype=dtype, name="delg")(maps["p4"])
        descriptor = delg.Beside(dtype="float32", name="beside")([descriptor, *local])
    return keras.Model(image, descriptor, name="dolg")


def _global_branch(p5, config: DolgConfig, channels: int, dtype):
    """Returns the global feature (B, channels); without fusion, the pooled map."""
    name = "average" if config.global_pooling == "average" else "gem"
    pool = layers.pooling(config.global_pooling, config.gem_p, name=name)
    if config.global_layer == "conv":
        x = keras.layers.Conv2D(channels, 1, dtype=dtype, name="global_conv")(p5)
        x = BatchNormalization(epsilon=1e-3, momentum=0.9, dtype=dtype, name="global_norm")(x)
        pooled = pool(keras.layers.Activation("silu", dtype=dtype, name="global_silu")(x))
    else:
        pooled = pool(p5)
        if config.fusion != "global_only":  # otherwise the last layer is the linear one
            return keras.layers.Dense(channels, dtype="float32", name="global")(pooled)
    return keras.layers.Identity(dtype="float32", name="global")(pooled)


def _local_branch(x, config: DolgConfig, channels: int, dtype, suffix: str):
    """Returns the local features (B, h, w, channels) of a map; layer names end in `suffix`."""
    if config.multi_atrous:
        x = layers.MultiAtrous(
            config.dilations,
            channels,
            config.multi_atrous_context,
            dtype=dtype,
            name=f"multi_atrous{suffix}",
        )(x)
    f_local, _ = layers.SpatialAttention(
        config.self_attention, channels, dtype=dtype, name=f"local{suffix}"
    )(x)
    return f_local


def _neck(fused, config: DolgConfig):
    """Returns the descriptor (B, descriptor_size); without a last layer, the features."""
    size = config.descriptor_size
    if not size:
        return keras.layers.Identity(dtype="float32", name="descriptor")(fused)
    if config.neck == "linear":
        return keras.layers.Dense(size, dtype="float32", name="descriptor")(fused)
    x = keras.layers.Dense(size, dtype="float32", name="neck_linear")(fused)
    x = keras.layers.BatchNormalization(
        epsilon=1e-5, momentum=0.9, dtype="float32", name="neck_norm"
    )(x)
    # One slope for all channels, initially 0.25, as in PyTorch's PReLU.
    quarter = keras.initializers.Constant(0.25)
    return keras.layers.PReLU(quarter, shared_axes=[1], dtype="float32", name="descriptor")(x)


def intermediates(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and outputs every named result.

    Args:
      network: from `build_dolg`.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `p5` (B, H/32, W/32, C2), `global` (B, C1) and
      `descriptor` (B, descriptor_size). If the network has a local branch, also the map that it
      starts from, such as `p4` (B, H/16, W/16, C), `local` (B, H/16, W/16, C1), `attention`
      (B, H/16, W/16, 1) and `fused` (B, 2 C1). If it has two, `local` and `attention` come from
      the finer map, and `fused` has 3 C1.
    """
    outputs = {}
    if has_local_branch(network):
        outputs["local"], outputs["attention"] = network.get_layer("local").output
    for layer in network.layers:
        if layer.name in (*MAPS, "global", "fused", "descriptor"):
            outputs[layer.name] = layer.output
    return keras.Model(network.input, outputs, name="dolg_intermediates")


def with_delg_local(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and outputs what DELG's losses need.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `descriptor` (B, descriptor_size), `p4`, the map
      (B, H/16, W/16, C), and the results of `DelgLocal`: `features`, `attention`, `expanded`.
    """
    outputs = {"descriptor": network.output, "p4": network.get_layer("p4").output}
    local = zip(
        ("features", "attention", "expanded"), network.get_layer("delg").output, strict=True
    )
    return keras.Model(network.input, outputs | dict(local), name="dolg_delg")


def with_local(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and outputs what `AttentionLoss` needs.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `descriptor` (B, descriptor_size) and `local`
      (B, h, w, C), the local features, of the finer map where there are two.
    """
    f_local, _ = network.get_layer("local").output
    outputs = {"descriptor": network.output, "local": f_local}
    return keras.Model(network.input, outputs, name="dolg_local")


def has_local_branch(network: keras.Model) -> bool:
    """Whether a network of `build_dolg` has a local branch."""
    return bool(local_branches(network))


def local_branches(network: keras.Model) -> list[tuple[str, str]]:
    """Returns the local branches of a network: the map each starts from, and its layers' suffix.

    The layers of the first branch are called `multi_atrous`, `local` and `fusion`.
    """
    names = {layer.name for layer in network.layers}
    if "local" not in names:
        return []
    if "local_p5" in names:
        return _branches("p4+p5")
    return _branches(next((name for name in ("p3", "p4") if name in names), "p5"))


def _branches(local_source: str) -> list[tuple[str, str]]:
    first, *others = local_source.split("+")
    return [(first, ""), *((source, f"_{source}") for source in others)]
