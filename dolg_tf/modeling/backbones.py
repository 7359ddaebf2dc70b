"""Backbones: KerasHub networks that give a stride-16 and a stride-32 map."""

import keras

from dolg_tf.config import InputError

_BASIC = {"stackwise_num_filters": [64, 128, 256, 512], "block_type": "basic_block"}
_BOTTLENECK = {"stackwise_num_filters": [64, 128, 256, 512], "block_type": "bottleneck_block"}

# Arguments of KerasHub's ResNetBackbone. The ResNets are v1.5: the stride is on the 3x3
# convolution, as in torchvision and in the authors' code.
RESNETS = {
    "resnet18": {**_BASIC, "stackwise_num_blocks": [2, 2, 2, 2]},
    "resnet34": {**_BASIC, "stackwise_num_blocks": [3, 4, 6, 3]},
    "resnet50": {**_BOTTLENECK, "stackwise_num_blocks": [3, 4, 6, 3]},
    "resnet101": {**_BOTTLENECK, "stackwise_num_blocks": [3, 4, 23, 3]},
    "resnet152": {**_BOTTLENECK, "stackwise_num_blocks": [3, 8, 36, 3]},
    # For the quickstart on a CPU: a 3x3 stem and no stack at stride 4, where most of the
    # arithmetic of a small ResNet goes.
    "resnet17_small": {
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 64, 128],
        "stackwise_num_blocks": [1, 2, 2],
        "stackwise_num_strides": [2, 2, 2],
        "block_type": "bottleneck_block",
    },
}


# Arguments of KerasHub's EfficientNetBackbone, as its presets have them: zero padding on both
# sides, no drop of whole blocks.
EFFICIENTNET_STACKS = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    "stackwise_squeeze_and_excite_ratios": [0.25] * 7,
    "stackwise_block_types": ["v1"] * 7,
    "dropout": 0.0,
    "min_depth": None,
    "use_depth_divisor_as_min_depth": True,
    "cap_round_filter_decrease": True,
}
# Width and depth coefficients (Tan and Le, EfficientNet, ICML 2019).
EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
}


def build_backbone(name: str, dtype=None) -> keras.Model:
    """Returns a randomly initialised backbone.

    Args:
      name: a key of `RESNETS` or `EFFICIENTNETS`.
      dtype: dtype policy of its layers.

    Returns:
      A model (B, H, W, 3) -> [(B, H/16, W/16, C1), (B, H/32, W/32, C2)], the f3 and f4 of the
      paper; sides are rounded up. Of an EfficientNet, the second is the last block's map, not
      that of the top convolution behind it, which is left out.
    """
    if name in RESNETS:
        backbone = _resnet(name, dtype)
        levels = sorted(backbone.pyramid_outputs)[-2:]
        maps = [backbone.pyramid_outputs[level] for level in levels]
    elif name in EFFICIENTNETS:
        backbone = _efficientnet(name, dtype)
        maps = [backbone.pyramid_outputs["P4"], backbone.get_layer("top_conv").input]
    else:
        known = ", ".join([*RESNETS, *EFFICIENTNETS])
        raise InputError(f"--backbone={name} is unknown; choose one of {known}")
    return keras.Model(backbone.input, maps, name="backbone")


def _resnet(name: str, dtype) -> keras.Model:
    """The last batch norm of each residual block starts at 0.

    So that every block starts as the identity (Goyal et al. 2017, section 5.1; the authors'
    code does the same).
    """
    from keras_hub.models import ResNetBackbone  # takes seconds: only where it is used

    arguments = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_strides": [1, 2, 2, 2],
        **RESNETS[name],
    }
    backbone = ResNetBackbone(image_shape=(None, None, 3), dtype=dtype, **arguments)
    last_norm = "_3_bn" if arguments["block_type"] == "bottleneck_block" else "_2_bn"
    for layer in backbone.layers:
        if layer.name.endswith(last_norm):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    return backbone


def _efficientnet(name: str, dtype) -> keras.Model:
    from keras_hub.models import EfficientNetBackbone

    width, depth = EFFICIENTNETS[name]
    before = keras.config.dtype_policy()
    # KerasHub's EfficientNet hands no dtype on to its layers: they take the global policy.
    keras.config.set_dtype_policy(dtype or before)
    try:
        return EfficientNetBackbone(
            width_coefficient=width, depth_coefficient=depth, **EFFICIENTNET_STACKS
        )
    finally:
        keras.config.set_dtype_policy(before)
