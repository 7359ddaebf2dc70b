"""ImageNet weights for a backbone: a KerasHub preset, a pip package, or a local file.

Preprocessing belongs to the weights: `preprocessing` says what a network must be built with, and
`load_backbone` refuses a network that was built with another.
"""

import logging
import pathlib
import zipfile
from collections import Counter

import keras

from dolg_tf.modeling.backbones import BACKBONES, EfficientNetLite
from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.files.h5_weights import check_finite, load_weights
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published
from dolg_tf.weights.assign import fill
from dolg_tf.weights.files.arrays import Tensor
from dolg_tf.weights.files.tensors import open_tensors
from dolg_tf.weights.imagenet_names import LITE_PREPROCESSING, TOP, Naming, find_naming

log = logging.getLogger(__name__)

# timm's recipe ra4 was trained with a mean and a deviation of one half.
_RA4 = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
# Layers of an EfficientNet after its last block.
_TOP = ("top_conv", "top_bn")
# What two layers of one name must share for the same weights to give the same layer.
_ALIKE = ("strides", "padding", "dilation_rate", "epsilon", "activation")


def preprocessing(source: str, config: DolgConfig) -> Preprocessing:
    """Returns the preprocessing that a network needs for the weights of its backbone.

    Args:
      source: as in `load_backbone`.
      config: of the network; its channel order is kept, since a kernel can be reversed.

    Raises:
      InputError: when the weights cannot be found.
    """
    if source == published.NONE:
        return config.preprocessing
    lite = isinstance(BACKBONES[config.backbone], EfficientNetLite)
    trained = _trained_with(source, lite)
    return _ordered(trained, config.preprocessing.channel_order)


def load_backbone(network: keras.Model, source: str) -> None:
    """Fills the backbone of a DOLG network with pretrained weights.

    Args:
      network: from `build_dolg`, with the `preprocessing` of the source.
      source: "none" (random; logged); the name of a KerasHub preset such as
        "resnet_50_imagenet" or "efficientnet_b5_sw_imagenet"; "efficientnet_lite0" or
        "efficientnet_lite2", which come as pip packages; or a local file: `.weights.h5` of the
        backbone of `build_dolg`, trained on RGB with the default preprocessing, or that of Lite;
        `.keras` of a KerasHub backbone; or a state dict (PyTorch, `.npz`, safetensors) that follows
        a naming of `imagenet_names`.

    Raises:
      InputError: when the weights cannot be found, do not fit, or need another preprocessing.
    """
    if source == published.NONE:
        log.info("backbone: random weights (--backbone_weights=none)")
        return
    backbone = network.get_layer("backbone")
    turn = _check_preprocessing(network, source)
    path = published.find_file(source)
    try:
        if path is None:
            used, ignored = _copy(_preset(source), backbone)
        elif path.name.endswith(".weights.h5"):
            load_weights(backbone, path)
            used, ignored = len(backbone.weights), {}
        elif path.suffix == ".keras":
            used, ignored = _copy(_keras_file(path), backbone)
        else:
            naming, tensors, beside = _named(path)
            if beside:
                log.info("%s: not read: %s", path, ", ".join(beside))
            entries = naming.entries(backbone)
            used, ignored = len(entries), fill(entries, tensors, naming.ignored_because)
    except (ValueError, KeyError) as error:
        raise _named_error(source, error) from error
    if turn:
        stem = next(layer for layer in backbone.layers if layer.weights)
        stem.kernel.assign(keras.ops.convert_to_numpy(stem.kernel)[:, :, ::-1])
        log.info("backbone: input channels of the first kernel reversed")
    digest = f", sha256 {files.sha256(path)}" if path else ""
    log.info("backbone: weights from %s%s; %d tensors used", source, digest, used)
    for why, number in Counter(ignored.values()).items():
        log.info("backbone: %d ignored: %s", number, why)


def _trained_with(source: str, lite: bool) -> Preprocessing:
    """Returns the preprocessing that the weights were trained with."""
    path = published.find_file(source)
    if path is not None and not _is_keras(path):
        try:
            return _named(path)[0].preprocessing
        except InputError as error:
            raise _named_error(source, error) from error
    if path is None and "_ra4_" in source:
        return _RA4
    return LITE_PREPROCESSING if lite else Preprocessing()


def _named_error(source: str, error: Exception) -> InputError:
    """Returns an error that names the weights."""
    text = str(error)
    return InputError(text if source in text else f"--backbone_weights={source}: {text}")


def _ordered(values: Preprocessing, channel_order: str) -> Preprocessing:
    """Returns the same preprocessing, stated in a channel order."""
    if values.channel_order == channel_order:
        return values
    return Preprocessing(channel_order=channel_order, mean=values.mean[::-1], std=values.std[::-1])


def _check_preprocessing(network: keras.Model, source: str) -> bool:
    """Returns whether the weights were trained with the opposite channel order to the network's.

    Raises:
      InputError: when the network normalises differently.
    """
    depthwise = [x for x in network.get_layer("backbone").layers if x.name == "block1a_dwconv"]
    lite = bool(depthwise) and depthwise[0].padding == "same"
    ours, trained = network.get_layer("normalization"), _trained_with(source, lite)
    wanted = _ordered(trained, ours.channel_order)
    if (ours.mean, ours.std) != (wanted.mean, wanted.std):
        raise InputError(
            f"--backbone_weights={source} needs mean {wanted.mean} and std {wanted.std}, but this "
            f"network has {ours.mean} and {ours.std}; build it with imagenet.preprocessing"
        )
    return trained.channel_order != ours.channel_order


# --- where the weights are -------------------------------------------------------------


def _is_keras(path: pathlib.Path) -> bool:
    return path.name.endswith((".weights.h5", ".keras"))


def _named(path: pathlib.Path) -> tuple[Naming, dict[str, Tensor], tuple[str, ...]]:
    """Returns the naming of a file, its tensors without `module.`, and names of other contents."""
    file = open_tensors(path)
    tensors = file.tensors
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return find_naming(tensors), tensors, file.beside


def _preset(name: str):
    from keras_hub.models import Backbone, EfficientNetBackbone, ResNetBackbone

    presets = [*ResNetBackbone.presets, *EfficientNetBackbone.presets]
    if name not in presets:
        known = ", ".join(sorted(filter(published.FITTING.fullmatch, presets)))
        raise InputError(
            f"--backbone_weights={name} is neither a file nor a ResNet or EfficientNet preset of "
            f"KerasHub ({known}), nor one of {', '.join(published.LITE_FILES)} (pip packages), "
            "nor 'none' for random weights"
        )
    try:
        return Backbone.from_preset(name)
    except Exception as error:  # the downloaders raise a dozen kinds without a common base
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise InputError(
            f"--backbone_weights={name} cannot be downloaded: give a local .weights.h5 or .keras "
            f"file, or 'none' for random weights ({reason})"
        ) from error


def _keras_file(path: pathlib.Path) -> keras.Model:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a .keras file, or is cut short: download it again")
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path} is not a network of only Keras and KerasHub layers: {reason}"
        ) from error
    check_finite(model, path)
    return model


def _copy(source: keras.Model, target: keras.Model) -> tuple[int, dict[str, str]]:
    """Copies layer by layer; both must have the same layers, except for an EfficientNet's top.

    Returns:
      The number of arrays used, and {name of an unused one: why}.
    """
    ours = {layer.name: layer for layer in target.layers if layer.weights}
    theirs = {layer.name: layer for layer in source.layers if layer.weights}
    top = [layer for name, layer in theirs.items() if name in _TOP and name not in ours]
    for name in [*ours, *theirs]:
        if name not in theirs:
            raise InputError(f"it has no layer {name}")
        if name not in ours and theirs[name] not in top:
            raise InputError(f"it has a layer {name}, which this backbone does not have")
    named = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        config = layer.get_config()
        other = named[layer.name].get_config() if layer.name in named else {}
        for key in _ALIKE:
            if key in other and other[key] != config[key]:
                raise InputError(
                    f"its layer {layer.name} has {key} {other[key]}, this backbone's {config[key]}"
                )
    for name, layer in ours.items():
        layer.set_weights(theirs[name].get_weights())
    unused = [variable.path for layer in top for variable in layer.weights]
    return len(target.weights), dict.fromkeys(unused, TOP)
