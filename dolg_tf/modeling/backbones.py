"""Backbones: KerasHub networks that give maps of stride 8, 16 and 32."""

import math

import keras

from dolg_tf.modeling.batch_norm import BatchNormalization
from dolg_tf.stage.config import InputError

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
# Lite: no squeeze-and-excitation, ReLU6; stem, top convolution, first and last stack are not
# scaled in width and in depth. Published weights were trained in TensorFlow, with its 'same'
# padding: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
LITES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}


def build_backbone(name: str, dtype=None, stride32: str = "last_block") -> keras.Model:
    """Returns a randomly initialised backbone.

    Args:
      name: a key of `RESNETS`, `EFFICIENTNETS` or `LITES`.
      dtype: dtype policy of its layers.
      stride32: which map of an EfficientNet is the stride-32 map: "last_block", or "top_conv", the
        1x1 convolution with batch norm and activation behind it.

    Returns:
      A model (B, H, W, 3) -> [(B, H/8, W/8, C0), (B, H/16, W/16, C1), (B, H/32, W/32, C2)]; the
      last two are the f3 and f4 of the paper. Sides are rounded up.

    Raises:
      InputError: when there is no such backbone, or it is a ResNet and has no top convolution.
    """
    if name in RESNETS:
        if stride32 != "last_block":
            raise InputError(f"--stride32={stride32}: {name} has no top convolution; leave it out")
        backbone = _resnet(name, dtype)
        levels = sorted(backbone.pyramid_outputs)[-3:]
        maps = [backbone.pyramid_outputs[level] for level in levels]
    elif name in EFFICIENTNETS or name in LITES:
        backbone = _efficientnet(name, dtype)
        maps = [backbone.pyramid_outputs[level] for level in ("P3", "P4", "P5")]
        if stride32 == "last_block":
            maps[-1] = backbone.get_layer("top_conv").input
    else:
        known = ", ".join([*RESNETS, *EFFICIENTNETS, *LITES])
        raise InputError(f"--backbone={name} is unknown; choose one of {known}")
    model = keras.Model(backbone.input, maps, name="backbone")
    if name in LITES:
        model = _padded_as_tensorflow(model)
    for layer in model.layers:
        if type(layer) is keras.layers.BatchNormalization:
            # Ours differs in how it computes alone; to build the model again takes seconds.
            layer.__class__ = BatchNormalization
    return model


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
            layer.gamma.assign(keras.ops.zeros(layer.gamma.shape))
    return backbone


def _efficientnet(name: str, dtype) -> keras.Model:
    from keras_hub.models import EfficientNetBackbone

    arguments = EFFICIENTNET_STACKS
    if name in LITES:
        arguments = {**arguments, **_lite_arguments(*LITES[name])}
    else:
        width, depth = EFFICIENTNETS[name]
        arguments = {**arguments, "width_coefficient": width, "depth_coefficient": depth}
    before = keras.config.dtype_policy()
    # KerasHub's EfficientNet hands no dtype on to its layers: they take the global policy.
    keras.config.set_dtype_policy(dtype or before)
    try:
        return EfficientNetBackbone(**arguments)
    finally:
        keras.config.set_dtype_policy(before)


def _lite_arguments(width: float, depth: float) -> dict:
    """Returns what Lite has otherwise; widths and repeats are scaled here, the stem's is not."""
    outputs = [_scaled(n, width) for n in EFFICIENTNET_STACKS["stackwise_output_filters"]]
    first, *middle, last = EFFICIENTNET_STACKS["stackwise_num_repeats"]
    return {
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "stackwise_input_filters": [32, *outputs[:-1]],
        "stackwise_output_filters": outputs,
        "stackwise_num_repeats": [first, *(math.ceil(depth * n) for n in middle), last],
        "stackwise_squeeze_and_excite_ratios": [0] * 7,
        "activation": "relu6",
        "batch_norm_epsilon": 1e-3,
        "include_stem_padding": False,
        "stem_conv_padding": "same",
    }


def _scaled(channels: int, width: float) -> int:
    """Returns the multiple of 8 nearest to `channels * width`, at most a tenth less."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def _padded_as_tensorflow(model: keras.Model) -> keras.Model:
    """Returns the model with 'same' depthwise convolutions in place of padding layers.

    KerasHub pads k // 2 zeros on every side. At stride 2 'same' puts one less before than behind a
    side of even length, so that the whole map would lie one pixel off.
    """

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            config["padding"] = "same"
        return type(layer).from_config(config)

    def call(layer, *inputs, **options):
        padding = isinstance(layer, keras.layers.ZeroPadding2D)
        return inputs[0] if padding else layer(*inputs, **options)

    return keras.models.clone_model(model, clone_function=clone, call_function=call)
