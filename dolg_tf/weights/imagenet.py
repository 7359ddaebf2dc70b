"""ImageNet weights for a backbone: a KerasHub preset or a local file."""

import logging
import pathlib

import keras

from dolg_tf.config import InputError

log = logging.getLogger(__name__)

NONE = "none"
# Presets of networks that `build_backbone` can build.
_FITTING = ("resnet_", "efficientnet_b")
# What an EfficientNet has behind its last block; DOLG has no use for it.
_TOP = ("top_conv", "top_bn")


def load_backbone(network: keras.Model, source: str) -> None:
    """Fills the backbone of a DOLG network with pretrained weights.

    Args:
      network: from `build_dolg`.
      source: "none" (random, said aloud), the name of a KerasHub preset such as
        "resnet_50_imagenet" or "efficientnet_b5_sw_imagenet" (RGB, ImageNet mean and deviation:
        our default preprocessing), or a local file: `.weights.h5` of the backbone of
        `build_dolg`, `.keras` of a KerasHub backbone.

    Raises:
      InputError: when the weights cannot be had, or do not fit.
    """
    if source == NONE:
        log.info("backbone: random weights (--backbone_weights=none)")
        return
    backbone = network.get_layer("backbone")
    path = pathlib.Path(source)
    try:
        if path.name.endswith(".weights.h5"):
            _need(path)
            backbone.load_weights(path)
        elif path.suffix == ".keras":
            _need(path)
            _copy(keras.models.load_model(path, compile=False), backbone, source)
        else:
            _copy(_preset(source), backbone, source)
    except InputError:
        raise
    except (ValueError, KeyError) as error:
        raise InputError(
            f"--backbone_weights={source} does not fit this backbone: {error}"
        ) from error
    log.info("backbone: weights from %s", source)


def _need(path: pathlib.Path) -> None:
    if not path.is_file():
        raise InputError(f"--backbone_weights={path}: no such file")


def _preset(name: str):
    from keras_hub.models import Backbone, EfficientNetBackbone, ResNetBackbone

    presets = [*ResNetBackbone.presets, *EfficientNetBackbone.presets]
    if name not in presets:
        known = ", ".join(sorted(preset for preset in presets if preset.startswith(_FITTING)))
        raise InputError(
            f"--backbone_weights={name} is neither a file nor a ResNet or EfficientNet preset of "
            f"KerasHub ({known}), nor 'none' for random weights"
        )
    try:
        return Backbone.from_preset(name)
    except Exception as error:  # the downloaders raise a dozen kinds, none of them common
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise InputError(
            f"--backbone_weights={name} could not be downloaded: give a local .weights.h5 or "
            f".keras file, or 'none' for random weights ({reason})"
        ) from error


def _copy(source: keras.Model, target: keras.Model, name: str) -> None:
    """Copies layer by layer; both must have the same ones, but for an EfficientNet's top."""
    theirs = {
        layer.name: layer for layer in source.layers if layer.weights and layer.name not in _TOP
    }
    ours = {layer.name: layer for layer in target.layers if layer.weights}
    for layer in [*ours, *theirs]:
        if layer not in theirs:
            raise InputError(f"--backbone_weights={name} has no layer {layer}")
        if layer not in ours:
            raise InputError(f"this backbone has no layer {layer}, --backbone_weights={name} has")
    for layer, variables in ours.items():
        variables.set_weights(theirs[layer].get_weights())
