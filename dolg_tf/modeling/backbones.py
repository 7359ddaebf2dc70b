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


def build_backbone(name: str, dtype=None) -> keras.Model:
    """Returns a randomly initialised backbone.

    The last batch norm of each residual block starts at 0, so that every block starts as the
    identity (Goyal et al. 2017, section 5.1; the authors' code does the same).

    Args:
      name: a key of `RESNETS`.
      dtype: dtype policy of its layers.

    Returns:
      A model (B, H, W, 3) -> [(B, H/16, W/16, C1), (B, H/32, W/32, C2)], the f3 and f4 of the
      paper; sides are rounded up.
    """
    from keras_hub.models import ResNetBackbone  # takes seconds: only where it is used

    if name not in RESNETS:
        raise InputError(f"--backbone={name} is unknown; choose one of {', '.join(RESNETS)}")
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
    levels = sorted(backbone.pyramid_outputs)[-2:]
    maps = [backbone.pyramid_outputs[level] for level in levels]
    return keras.Model(backbone.input, maps, name="backbone")
