"""The DOLG network.

    image -> backbone -+- p5 -> GeM -> FC ---------------------- global --+
                       |                                          |       +-> concat -> FC -> 512
                       +- p4 -> multi-atrous -> attention -> local -> orthogonal part, pooled

Without fusion (`fusion=global_only`, DELG's global descriptor): p5 -> GeM -> FC -> descriptor.

Reference: Yang et al., DOLG, ICCV 2021, https://arxiv.org/abs/2108.02927, figure 2. The paper's
f3 is p4 (stride 16) and its f4 is p5 (stride 32).
"""

import dataclasses

import keras

from dolg_tf.modeling import layers
from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.recipe import DolgConfig


def build_dolg(config: DolgConfig, dtype=None, seed: int | None = None) -> keras.Model:
    """Builds the network with random weights.

    Args:
      config: what to build.
      dtype: dtype policy of the convolutions, such as "mixed_bfloat16"; pooling, fusion and
        the last layers stay in float32.
      seed: of the initial weights; None: random ones.

    Returns:
      A `keras.Model`: float32 RGB in [0, 1], (B, H, W, 3), of any size -> float32 descriptors
      (B, descriptor_size), not normalised: the class head and the export divide by the norm.
      Its intermediate results: see `intermediates`.
    """
    if seed is not None:
        keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3), name="image")
    x = layers.ChannelNormalization(
        **dataclasses.asdict(config.preprocessing), dtype="float32", name="normalization"
    )(image)
    p4, p5 = build_backbone(config.backbone, dtype, config.stride32)(x)
    p4 = keras.layers.Identity(dtype=dtype, name="p4")(p4)
    p5 = keras.layers.Identity(dtype=dtype, name="p5")(p5)
    if config.fusion == "global_only":
        fused = _global_branch(p5, config, config.local_channels or p5.shape[-1], dtype)
    else:
        channels = config.local_channels or p4.shape[-1]
        f_global = _global_branch(p5, config, channels, dtype)
        f_local = _local_branch(p4, config, channels, dtype)
        fused = layers.OrthogonalFusion(config.fused_pooling, dtype="float32", name="fused")(
            f_local, f_global
        )
    return keras.Model(image, _neck(fused, config), name="dolg")


def _global_branch(p5, config: DolgConfig, channels: int, dtype):
    """Returns the global feature (B, channels); without fusion, what is pooled."""
    gem = layers.GeM(config.gem_p, config.train_gem_p, dtype="float32", name="gem")
    if config.global_layer == "conv":
        x = keras.layers.Conv2D(channels, 1, dtype=dtype, name="global_conv")(p5)
        x = keras.layers.BatchNormalization(
            epsilon=1e-3, momentum=0.9, dtype=dtype, name="global_norm"
        )(x)
        pooled = gem(keras.layers.Activation("silu", dtype=dtype, name="global_silu")(x))
    else:
        pooled = gem(p5)
        if config.fusion == "orthogonal":  # else the descriptor's layer is the linear one
            return keras.layers.Dense(channels, dtype="float32", name="global")(pooled)
    return keras.layers.Identity(dtype="float32", name="global")(pooled)


def _local_branch(p4, config: DolgConfig, channels: int, dtype):
    """Returns the local features (B, H/16, W/16, channels)."""
    x = p4
    if config.multi_atrous:
        x = layers.MultiAtrous(
            config.dilations,
            channels,
            config.multi_atrous_context,
            dtype=dtype,
            name="multi_atrous",
        )(x)
    f_local, _ = layers.SpatialAttention(
        config.self_attention, channels, dtype=dtype, name="local"
    )(x)
    return f_local


def _neck(fused, config: DolgConfig):
    """Returns the descriptor (B, descriptor_size)."""
    size = config.descriptor_size
    if config.neck == "linear":
        return keras.layers.Dense(size, dtype="float32", name="descriptor")(fused)
    x = keras.layers.Dense(size, dtype="float32", name="neck_linear")(fused)
    x = keras.layers.BatchNormalization(
        epsilon=1e-5, momentum=0.9, dtype="float32", name="neck_norm"
    )(x)
    # One slope for all channels, 0.25 at first, as PyTorch's PReLU has it.
    quarter = keras.initializers.Constant(0.25)
    return keras.layers.PReLU(quarter, shared_axes=[1], dtype="float32", name="descriptor")(x)


def intermediates(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and gives every named result.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `p5` (B, H/32, W/32, C2), `global` (B, C1) and
      `descriptor` (B, descriptor_size), and where the network has a local branch also `p4`
      (B, H/16, W/16, C), `local` (B, H/16, W/16, C1), `attention` (B, H/16, W/16, 1) and
      `fused` (B, 2 C1).
    """
    names = ["p5", "global", "descriptor"]
    outputs = {}
    if has_local_branch(network):
        outputs["local"], outputs["attention"] = network.get_layer("local").output
        names += ["p4", "fused"]
    for name in names:
        outputs[name] = network.get_layer(name).output
    return keras.Model(network.input, outputs, name="dolg_intermediates")


def has_local_branch(network: keras.Model) -> bool:
    """Returns whether a network of `build_dolg` has a local branch to fuse."""
    return any(layer.name == "local" for layer in network.layers)
