"""The authors' checkpoints: the variable of ours for each of their tensors.

Their names, for depth 50: `globalmodel.s1.b1.f.a.weight` is the first convolution of the first
block. Convolutions are [out, in, h, w] there and [h, w, in, out] here, dense layers [out, in]
there and [in, out] here.
"""

import re
from collections import Counter
from collections.abc import Mapping

import keras
import numpy as np

from dolg_tf.modeling.backbones import BACKBONES
from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.stage.config import InputError
from dolg_tf.weights.assign import CONV, COUNTER, SAME, Entry, checked, fill, norm_entries, state_of
from dolg_tf.weights.files.arrays import Tensor
from dolg_tf.weights.imagenet_names import PYCLS

_DENSE = (1, 0)
_HEAD = "desc_cls."
# Backbones of their code.
_BOTTLENECKS = ("resnet50", "resnet101", "resnet152")


def official_name(name: str) -> str:
    """Returns the name of a tensor in the authors' present code.

    Some files have the prefix `module.`, from training on several GPUs, or `conv1.block1` instead
    of `s1.b1`.
    """
    name = name.removeprefix("module.")
    return re.sub(r"\bconv([1-4])\.block(\d+)\.", r"s\1.b\2.", name)


def ignored_because(name: str) -> str:
    """Returns why a tensor of an official checkpoint is not needed; "" if it is."""
    if name.endswith(COUNTER):
        return "counts training steps; batch norms with a fixed momentum do not read it"
    if name.startswith(_HEAD):
        return "class head; a model directory holds none"
    return ""


def detect(state: Mapping[str, np.ndarray | Tensor]) -> DolgConfig:
    """Returns the configuration of the network in an official state dict.

    Args:
      state: by `official_name`.

    Raises:
      InputError: when it is not a DOLG of the authors' code.
    """
    if not any(name.startswith("globalmodel.") for name in state):
        example = next(iter(state), "no tensor at all")
        raise InputError(
            f"this is not a DOLG checkpoint: no tensor's name starts with globalmodel. (it holds "
            f"{example}, for instance); ImageNet weights are for --backbone_weights of `dolg train`"
        )
    found = re.findall(r"globalmodel\.s([1-4])\.b(\d+)\.f\.a\.weight\n", "\n".join([*state, ""]))
    blocks = Counter(int(stage) for stage, _ in found)
    depths = [blocks[stage] for stage in (1, 2, 3, 4)]
    known = {name: list(BACKBONES[name].blocks) for name in _BOTTLENECKS}
    backbone = next((name for name, numbers in known.items() if numbers == depths), None)
    if backbone is None:
        raise InputError(
            f"its stages have {depths} blocks, but ResNet-50, 101 and 152 have "
            + ", ".join(map(str, known.values()))
        )
    if "fc.weight" not in state or len(state["fc.weight"].shape) != 2:
        raise InputError("the checkpoint lacks the matrix fc.weight, which makes the descriptor")
    trained_p = "pool_g.p" in state
    return DolgConfig(
        backbone=backbone,
        multi_atrous=any(name.startswith("localmodel.aspp.") for name in state),
        gem_p=_gem_p(state["pool_g.p"]) if trained_p else 3.0,
        global_pooling="learned" if trained_p else "gem",
        descriptor_size=state["fc.weight"].shape[0],
        preprocessing=OFFICIAL_PREPROCESSING,
    )


def _gem_p(tensor) -> float:
    if tensor.shape not in ((1,), ()):
        raise InputError(
            f"pool_g.p has shape {tensor.shape}; the exponent of GeM must be one number"
        )
    exponent = float(checked("pool_g.p", tensor).reshape(()))
    if not exponent > 0:
        raise InputError(f"pool_g.p is {exponent}; the exponent of GeM must be above 0")
    return exponent


# --- names -----------------------------------------------------------------------------


def _affine(prefix, layer, axes):
    return [(f"{prefix}.weight", layer.kernel, axes), (f"{prefix}.bias", layer.bias, SAME)]


def official_entries(network: keras.Model) -> list[Entry]:
    """Returns (official name, our variable, transposition from theirs to ours) of each tensor.

    Args:
      network: of a configuration that passes `check_official`.
    """
    entries = [("pool_g.p", network.get_layer("gem").p, SAME)]
    entries += _affine("fc_t", network.get_layer("global"), _DENSE)
    entries += _affine("fc", network.get_layer("descriptor"), _DENSE)
    backbone = PYCLS.entries(network.get_layer("backbone"))
    entries += [(f"globalmodel.{name}", variable, axes) for name, variable, axes in backbone]
    local = network.get_layer("local")
    if any(layer.name == "multi_atrous" for layer in network.layers):
        atrous = network.get_layer("multi_atrous")
        for i, layer in enumerate([atrous.point, *atrous.dilated]):
            entries += _affine(f"localmodel.aspp.aspp.{i}", layer, CONV)
        entries += _affine("localmodel.aspp.im_pool.1", atrous.pooled, CONV)
        entries += _affine("localmodel.aspp.conv_after.0", atrous.reduce, CONV)
    entries += _affine("localmodel.conv1", local.conv, CONV) + norm_entries(
        "localmodel.bn", local.norm
    )
    return entries + _affine("localmodel.conv2", local.score, CONV)


def check_official(config: DolgConfig) -> None:
    """Makes sure that the authors' code can build a configuration.

    Raises:
      InputError: naming the first option that differs from theirs.
    """
    if config.backbone not in _BOTTLENECKS:
        raise InputError(
            f"the authors' code has the backbones {', '.join(_BOTTLENECKS)}, not {config.backbone}"
        )
    if not config.descriptor_size:
        raise InputError("the authors' code has a last layer; this network has descriptor_size 0")
    theirs = DolgConfig()
    free = ("backbone", "multi_atrous", "gem_p", "descriptor_size", "preprocessing")
    for name, ours in vars(config).items():
        same = ours == getattr(theirs, name) or (name == "local_channels" and ours == 1024)
        if name == "global_pooling" and ours == "learned":
            same = True
        if name in ("dilations", "multi_atrous_context") and not config.multi_atrous:
            same = True
        if name not in free and not same:
            raise InputError(
                f"the authors' code has {name} {getattr(theirs, name)}; this network has {ours}"
            )


# --- values ----------------------------------------------------------------------------


def load_state_dict(
    network: keras.Model, state: Mapping[str, np.ndarray | Tensor]
) -> dict[str, str]:
    """Fills every variable of the network from an official state dict.

    Args:
      network: from `build_dolg(detect(state))`.
      state: arrays, or tensors of a file, by `official_name`.

    Returns:
      {name of a tensor that was not needed: why}.

    Raises:
      InputError: naming the first tensor that is missing, left over, of another shape or type, or
        not finite.
    """
    entries = official_entries(network)
    if "pool_g.p" not in state:  # a constant in their later code; `detect` has set it
        entries = [entry for entry in entries if entry[0] != "pool_g.p"]
    return fill(entries, state, ignored_because)


def state_dict(network: keras.Model, config: DolgConfig) -> dict[str, np.ndarray]:
    """Returns the network as an official state dict, without class head.

    The authors' code feeds BGR. For a network that takes RGB, the input channels of the first
    kernel are reversed. The network is the same, since mean and deviation belong to the channel.

    Raises:
      InputError: when the authors' code cannot build this network, or normalises differently.
    """
    check_official(config)
    theirs, ours = OFFICIAL_PREPROCESSING, config.preprocessing
    turned = ours.channel_order != theirs.channel_order
    step = -1 if turned else 1
    if (ours.mean[::step], ours.std[::step]) != (theirs.mean, theirs.std):
        raise InputError(
            f"the authors' code normalises with mean {theirs.mean} and std {theirs.std} in BGR, "
            f"this network with {ours.mean} and {ours.std} in {ours.channel_order.upper()}"
        )
    state = state_of(official_entries(network))
    if config.global_pooling == "gem" and state["pool_g.p"] == 3:
        del state["pool_g.p"]  # the default of both versions of their code
    if turned:
        stem = "globalmodel.stem.conv.weight"
        state[stem] = state[stem][:, ::-1]
    return state


def head_state(head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a class head under the authors' names; nothing if it has sub-centres.

    Args:
      head: variables by name, from `model_dir.load_head`.
    """
    kernel = head["kernel"]
    if kernel.ndim != 2:
        return {}
    t = np.asarray(head.get("t", 0), np.float32).reshape(1)
    return {f"{_HEAD}weight": kernel, f"{_HEAD}t": t}
