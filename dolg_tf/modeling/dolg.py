"""The DOLG network.

    image -> backbone -+- p5 -> GeM -> FC ---------------------- global --+
                       |                                          |       +-> concat -> FC -> 512
                       +- p4 -> multi-atrous -> attention -> local -> orthogonal part, pooled

Reference: Yang et al., DOLG, ICCV 2021, https://arxiv.org/abs/2108.02927, figure 2. The paper's
f3 is p4 (stride 16) and its f4 is p5 (stride 32).
"""

import dataclasses

import keras

from dolg_tf.config import DolgConfig
from dolg_tf.modeling import layers
from dolg_tf.modeling.backbones import build_backbone


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
    p4, p5 = build_backbone(config.backbone, dtype)(x)
    p4 = keras.layers.Identity(dtype=dtype, name="p4")(p4)
    p5 = keras.layers.Identity(dtype=dtype, name="p5")(p5)
    channels = p4.shape[-1]

    pooled = layers.GeM(config.gem_p, config.train_gem_p, dtype="float32", name="gem")(p5)
    f_global = keras.layers.Dense(channels, dtype="float32", name="global")(pooled)

    x = p4
    if config.multi_atrous:
        x = layers.MultiAtrous(config.dilations, dtype=dtype, name="multi_atrous")(x)
    f_local, _ = layers.SpatialAttention(config.self_attention, dtype=dtype, name="local")(x)

    fused = layers.OrthogonalFusion(config.fused_pooling, dtype="float32", name="fused")(
        f_local, f_global
    )
    descriptor = keras.layers.Dense(config.descriptor_size, dtype="float32", name="descriptor")(
        fused
    )
    return keras.Model(image, descriptor, name="dolg")


def intermediates(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and gives every named result.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `p4` (B, H/16, W/16, C1), `p5`
      (B, H/32, W/32, C2), `global` (B, C1), `local` (B, H/16, W/16, C1), `attention`
      (B, H/16, W/16, 1), `fused` (B, 2 C1) and `descriptor` (B, descriptor_size).
    """
    local, attention = network.get_layer("local").output
    outputs = {"local": local, "attention": attention}
    for name in ("p4", "p5", "global", "fused", "descriptor"):
        outputs[name] = network.get_layer(name).output
    return keras.Model(network.input, outputs, name="dolg_intermediates")
