"""Checkpoints of HOW's authors, in and out: the variable of ours for each of their tensors.

Their network is torchvision's ResNet as a list, cut off behind a stack: `features.0` is the first
convolution, `features.4` the first stack. There are two forms. The later one (`_version` how/2020)
stores the arguments of the network under `net_params` and the whitening as `dim_reduction`; the
earlier one describes the network under `meta` and calls the whitening `whiten`.

Reference: https://github.com/gtolias/how, how/networks/how_net.py.
"""

import re
from collections import Counter
from collections.abc import Mapping

import keras
import numpy as np

from dolg_tf.modeling.backbones import BACKBONES
from dolg_tf.modeling.config import HowConfig, Preprocessing
from dolg_tf.stage.config import InputError
from dolg_tf.weights.assign import CONV, COUNTER, SAME, Entry, fill, state_of
from dolg_tf.weights.files.arrays import Tensor
from dolg_tf.weights.imagenet_names import resnet_entries, torchvision_name

_BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_WHITENINGS = ("dim_reduction", "whiten")  # of the later and the earlier form
_VERSION = "how/2020"
_SMOOTHING = 3  # cells, the side of the mean
_RUNTIME = {  # the authors' evaluation, which a checkpoint has to say
    "image_size": 1024,
    "features_num": 1000,
    "scales": [2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25],
    "training_scales": [1],
}
_SOURCES = {3: "p4", 4: "p5"}  # by the number of stacks


def holds(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of a HOW network."""
    return "features.0.weight" in state and any(f"{name}.weight" in state for name in _WHITENINGS)


def how_name(name: str) -> str:
    """Returns the name of a tensor in the later form."""
    return re.sub(r"^whiten\.", "dim_reduction.", name)


def ignored_because(name: str) -> str:
    """Returns why a tensor of a HOW checkpoint is not needed; "" if it is."""
    return "counts training steps; the norms are frozen" if name.endswith(COUNTER) else ""


def detect(state: Mapping[str, np.ndarray | Tensor], beside: Mapping[str, object]) -> HowConfig:
    """Returns the configuration of the network in a state dict.

    Args:
      state: by `how_name`.
      beside: what else the checkpoint holds; it is compared with the tensors where both say it.

    Raises:
      InputError: when it is not a HOW network that we can build.
    """
    stacks = [
        Counter(re.findall(rf"^features\.{part}\.(\d+)\.conv1\.weight$", "\n".join(state), re.M))
        for part in (4, 5, 6, 7)
    ]
    depths = [len(stack) for stack in stacks if stack]
    bottleneck = "features.4.0.conv3.weight" in state
    backbone = next(
        (
            name
            for name in _BACKBONES
            if list(BACKBONES[name].blocks)[: len(depths)] == depths
            and BACKBONES[name].bottleneck == bottleneck
        ),
        None,
    )
    if backbone is None or len(depths) not in _SOURCES:
        kind = "bottleneck" if bottleneck else "basic"
        raise InputError(
            f"its stacks have {depths} {kind} blocks: this is not ResNet-18, 34, 50, 101 or 152, "
            "whole or without its last stack"
        )
    weight = state["dim_reduction.weight"]
    if len(weight.shape) != 4:
        raise InputError(f"its whitening has shape {tuple(weight.shape)}, not (D, C, 1, 1)")
    about = _about(beside)
    _compare(about, backbone, len(depths), weight.shape[0])
    return HowConfig(
        backbone=backbone,
        local_source=_SOURCES[len(depths)],
        dimensions=weight.shape[0],
        preprocessing=about["preprocessing"],
    )


# --- what the checkpoint says beside its tensors ----------------------------------------


def _about(beside: Mapping[str, object]) -> dict:
    """Returns what a checkpoint says of its network, None where it does not."""
    version = beside.get("_version", _VERSION)
    if version != _VERSION:
        raise InputError(f"its _version is {version!r:.60}; {_VERSION} is known")
    new, old = _mapping(beside, "net_params"), _mapping(beside, "meta")
    runtime = _mapping(new, "runtime")
    if new:
        smoothing = _mapping(new, "smoothing").get("kernel_size")
        dimensions = _mapping(new, "dim_reduction").get("dim")
        statistics = runtime.get("mean_std")
    else:
        smoothing, dimensions = old.get("feat_pool_k"), old.get("dim")
        statistics = (old["mean"], old["std"]) if {"mean", "std"} <= set(old) else None
    source = new or old
    return {
        "architecture": source.get("architecture"),
        "skip_layer": source.get("skip_layer"),
        "dimensions": dimensions,
        "smoothing": smoothing,
        "preprocessing": _preprocessing(statistics),
    }


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _preprocessing(statistics) -> Preprocessing:
    """Returns the preprocessing of `mean_std`; that of ImageNet if the checkpoint has none."""
    if statistics is None:
        return Preprocessing()
    if isinstance(statistics, dict):
        statistics = [statistics.get("mean"), statistics.get("std")]
    try:
        mean, std = (tuple(float(number) for number in numbers) for numbers in statistics)
        return Preprocessing(mean=mean, std=std)
    except (TypeError, ValueError) as error:  # InputError is a ValueError
        raise InputError(
            f"its mean and deviation of colours are {statistics!r:.100}; they must be two lists of "
            "three numbers"
        ) from error


def _compare(about: dict, backbone: str, stacks: int, dimensions: int) -> None:
    """Makes sure that what a checkpoint says is what its tensors are.

    Raises:
      InputError: naming the first difference.
    """
    found = {
        "architecture": backbone,
        "skip_layer": 4 - stacks,
        "dimensions": dimensions,
        "smoothing": _SMOOTHING,
    }
    for name, ours in found.items():
        if about[name] not in (None, ours):
            raise InputError(
                f"it says {name} {about[name]!r:.60}, but its tensors are of a network with {ours}"
                if name != "smoothing"
                else f"its smoothing is over {about[name]!r:.60} cells; only {_SMOOTHING} is known"
            )


# --- values -----------------------------------------------------------------------------


def _name(stack, block, number, kind) -> str:
    """Returns their name of a part of the backbone, see `imagenet_names.resnet_entries`."""
    if stack is None:
        return f"features.{0 if kind == 'conv' else 1}"
    _, rest = torchvision_name(stack, block, number, kind).split(".", 1)
    return f"features.{stack + 4}.{rest}"


def how_entries(network: keras.Model) -> list[Entry]:
    """Returns (their name, our variable, transposition from theirs to ours) of each tensor.

    Args:
      network: from `build_how`, with a ResNet for a backbone.
    """
    reduced = network.get_layer("reduced")
    return [
        *resnet_entries(_name)(network.get_layer("backbone")),
        ("dim_reduction.weight", reduced.kernel, CONV),
        ("dim_reduction.bias", reduced.bias, SAME),
    ]


def load_state_dict(
    network: keras.Model, state: Mapping[str, np.ndarray | Tensor]
) -> dict[str, str]:
    """Fills every variable of the network from a state dict.

    Args:
      network: from `build_how(detect(state, ...))`.
      state: arrays, or tensors of a file, by `how_name`.

    Returns:
      {name of a tensor that was not needed: why}.

    Raises:
      InputError: naming the first tensor that is missing, left over, of another shape or type, or
        not finite.
    """
    return fill(how_entries(network), state, ignored_because)


def state_dict(
    network: keras.Model, config: HowConfig
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Returns the network in the later form: its tensors, and the values beside them.

    Raises:
      InputError: when the authors' code cannot build this network.
    """
    if config.backbone not in _BACKBONES:
        raise InputError(
            f"the code of HOW's authors has the backbones {', '.join(_BACKBONES)}, not "
            f"{config.backbone}"
        )
    colours = config.preprocessing
    if colours.channel_order != "rgb":
        raise InputError("the code of HOW's authors feeds RGB, this network takes BGR")
    net_params = {
        "architecture": config.backbone,
        "pretrained": False,  # nothing to download: the tensors are here
        "skip_layer": 4 - next(n for n, name in _SOURCES.items() if name == config.local_source),
        "dim_reduction": {"dim": config.dimensions},
        "smoothing": {"kernel_size": _SMOOTHING},
        "runtime": {"mean_std": [list(colours.mean), list(colours.std)], **_RUNTIME},
    }
    return state_of(how_entries(network)), {"net_params": net_params, "_version": _VERSION}
