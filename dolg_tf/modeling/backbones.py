"""Backbones: KerasHub networks that give maps of stride 8, 16 and 32.

`BACKBONES` is the only list of them; --backbone, its help text and --recompute all read it. Keras
is imported only when one is built, because `--help` must answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing

from dolg_tf.stage.config import InputError

if typing.TYPE_CHECKING:
    import keras


class Backbone(typing.Protocol):
    """A family of networks, as `BACKBONES` needs it."""

    def build(self, dtype, stride32: str) -> tuple[keras.KerasTensor, list]:
        """Returns the image and the maps of stride 8, 16 and 32, with random weights.

        Args:
          dtype: dtype policy of the layers.
          stride32: which map is the stride-32 map (see `build_backbone`).

        Raises:
          InputError: if the network has no such map.
        """

    def block(self, layer: str) -> str:
        """Returns the residual block that a layer belongs to, by name; "" if it is in none.

        With --recompute, only the input of each block is kept for the backward pass.
        """


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A ResNet v1.5: the stride is on the 3x3 convolution, as in torchvision and the authors' code.

    Args:
      blocks: number of residual blocks per stage.
      bottleneck: whether blocks are 1x1, 3x3 and 1x1 convolutions; otherwise two 3x3 ones.
      filters, strides: per stage.
      stem: kernel size of the first convolution.
    """

    blocks: tuple[int, ...]
    bottleneck: bool = True
    filters: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: int = 7

    def build(self, dtype, stride32):
        import keras
        from keras_hub.models import ResNetBackbone

        if stride32 != "last_block":
            raise InputError(f"--stride32={stride32}: a ResNet has no top convolution; omit it")
        backbone = ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[self.stem],
            stackwise_num_filters=list(self.filters),
            stackwise_num_blocks=list(self.blocks),
            stackwise_num_strides=list(self.strides),
            block_type="bottleneck_block" if self.bottleneck else "basic_block",
            image_shape=(None, None, 3),
            dtype=dtype,
        )
        # The last batch norm of each residual block starts at 0, so that every block starts as the
        # identity (Goyal et al. 2017, section 5.1; the authors' code does the same).
        last_norm = "_3_bn" if self.bottleneck else "_2_bn"
        for layer in backbone.layers:
            if layer.name.endswith(last_norm):
                layer.gamma.assign(keras.ops.zeros(layer.gamma.shape))
        levels = sorted(backbone.pyramid_outputs)[-3:]
        return backbone.input, [backbone.pyramid_outputs[level] for level in levels]

    def block(self, layer):
        return _matched(r"stack\d+_block\d+(?=_)", layer)


# Arguments of KerasHub's EfficientNetBackbone, as in its presets: zero padding on both sides, and
# no dropping of whole blocks.
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


@dataclasses.dataclass(frozen=True)
class EfficientNet:
    """An EfficientNet, cut after its last block or after its top convolution.

    Args:
      width, depth: scaling coefficients.

    Reference: Tan and Le, EfficientNet, ICML 2019.
    """

    width: float
    depth: float

    def build(self, dtype, stride32):
        import keras
        from keras_hub.models import EfficientNetBackbone

        before = keras.config.dtype_policy()
        # KerasHub's EfficientNet passes no dtype to its layers: they take the global policy.
        keras.config.set_dtype_policy(dtype or before)
        try:
            backbone = EfficientNetBackbone(**{**EFFICIENTNET_STACKS, **self._arguments()})
        finally:
            keras.config.set_dtype_policy(before)
        maps = [backbone.pyramid_outputs[level] for level in ("P3", "P4", "P5")]
        if stride32 == "last_block":
            maps[-1] = backbone.get_layer("top_conv").input
        return backbone.input, maps

    def _arguments(self) -> dict:
        return {"width_coefficient": self.width, "depth_coefficient": self.depth}

    def block(self, layer):
        return _matched(r"block\d+[a-z]+(?=_)", layer)


class EfficientNetLite(EfficientNet):
    """An EfficientNet with ReLU6 and TensorFlow's 'same' padding, without squeeze-and-excitation.

    The widths of stem and top convolution and the depths of the first and the last stack are not
    scaled. The published weights were trained in TensorFlow, with its padding.

    Reference: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    def build(self, dtype, stride32):
        import keras

        model = _padded_as_tensorflow(keras.Model(*super().build(dtype, stride32)))
        return model.input, model.outputs

    def _arguments(self):
        # Widths and repeats are scaled here, so that the stem's is not.
        outputs = [_scaled(n, self.width) for n in EFFICIENTNET_STACKS["stackwise_output_filters"]]
        first, *middle, last = EFFICIENTNET_STACKS["stackwise_num_repeats"]
        repeats = [first, *(math.ceil(self.depth * n) for n in middle), last]
        return {
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "stackwise_input_filters": [32, *outputs[:-1]],
            "stackwise_output_filters": outputs,
            "stackwise_num_repeats": repeats,
            "stackwise_squeeze_and_excite_ratios": [0] * 7,
            "activation": "relu6",
            "batch_norm_epsilon": 1e-3,
            "include_stem_padding": False,
            "stem_conv_padding": "same",
        }


BACKBONES: dict[str, Backbone] = {
    "resnet18": ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNet((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNet((3, 4, 6, 3)),
    "resnet101": ResNet((3, 4, 23, 3)),
    "resnet152": ResNet((3, 8, 36, 3)),
    # For the quickstart on a CPU: a 3x3 stem, and no stack at stride 4, where a small ResNet spends
    # most of its arithmetic.
    "resnet17_small": ResNet((1, 2, 2), filters=(64, 64, 128), strides=(2, 2, 2), stem=3),
    "efficientnet_b0": EfficientNet(1.0, 1.0),
    "efficientnet_b1": EfficientNet(1.0, 1.1),
    "efficientnet_b2": EfficientNet(1.1, 1.2),
    "efficientnet_b3": EfficientNet(1.2, 1.4),
    "efficientnet_b4": EfficientNet(1.4, 1.8),
    "efficientnet_b5": EfficientNet(1.6, 2.2),
    "efficientnet_b6": EfficientNet(1.8, 2.6),
    "efficientnet_b7": EfficientNet(2.0, 3.1),
    "efficientnet_lite0": EfficientNetLite(1.0, 1.0),
    "efficientnet_lite1": EfficientNetLite(1.0, 1.1),
    "efficientnet_lite2": EfficientNetLite(1.1, 1.2),
    "efficientnet_lite3": EfficientNetLite(1.2, 1.4),
    "efficientnet_lite4": EfficientNetLite(1.4, 1.8),
}


def find_backbone(name: str) -> Backbone:
    """Returns the entry of `BACKBONES` with this name.

    Raises:
      InputError: if there is none; it proposes the nearest name.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(
            f"--backbone={name} is unknown{meant}; choose one of {', '.join(BACKBONES)}"
        )
    return BACKBONES[name]


def build_backbone(name: str, dtype=None, stride32: str = "last_block") -> keras.Model:
    """Builds a backbone with random weights.

    Args:
      name: a key of `BACKBONES`.
      dtype: dtype policy of its layers.
      stride32: which map of an EfficientNet is the stride-32 map: "last_block", or "top_conv", the
        1x1 convolution after it with its batch norm and activation.

    Returns:
      A model (B, H, W, 3) -> [(B, H/8, W/8, C0), (B, H/16, W/16, C1), (B, H/32, W/32, C2)]; the
      last two are the f3 and f4 of the paper. Sides are rounded up.

    Raises:
      InputError: if there is no such backbone, or if it is a ResNet, without a top convolution.
    """
    import keras

    from dolg_tf.modeling.batch_norm import BatchNormalization

    image, maps = find_backbone(name).build(dtype, stride32)
    model = keras.Model(image, maps, name="backbone")
    for layer in model.layers:
        if type(layer) is keras.layers.BatchNormalization:
            # Ours differs only in how it computes; building the model again would take seconds.
            layer.__class__ = BatchNormalization
    return model


def _matched(pattern: str, layer: str) -> str:
    found = re.match(pattern, layer)
    return found[0] if found else ""


def _scaled(channels: int, width: float) -> int:
    """Returns the multiple of 8 nearest to `channels * width`, but at most a tenth below it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def _padded_as_tensorflow(model: keras.Model) -> keras.Model:
    """Returns the model with 'same' depthwise convolutions instead of padding layers.

    KerasHub pads k // 2 zeros on every side. At stride 2 and an even length, 'same' puts one zero
    less before than after, so the whole map would be shifted by a pixel.
    """
    import keras

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            config["padding"] = "same"
        return type(layer).from_config(config)

    def call(layer, *inputs, **options):
        padding = isinstance(layer, keras.layers.ZeroPadding2D)
        return inputs[0] if padding else layer(*inputs, **options)

    return keras.models.clone_model(model, clone_function=clone, call_function=call)
