"""The authors' checkpoints: which of their tensors is which of our variables.

Their names, for depth 50: `globalmodel.s1.b1.f.a.weight` is the first convolution of the first
block. Convolutions are [out, in, h, w] there and [h, w, in, out] here, dense layers [out, in]
there and [in, out] here.
"""

from collections.abc import Mapping

import keras
import numpy as np

from dolg_tf.config import InputError

_CONV, _DENSE, _SAME = (2, 3, 1, 0), (1, 0), None
# Counters and training state that inference has no use for.
IGNORED_SUFFIXES = ("num_batches_tracked",)
IGNORED_PREFIXES = ("desc_cls.",)


def _norm(prefix, layer):
    return [
        (f"{prefix}.weight", layer.gamma, _SAME),
        (f"{prefix}.bias", layer.beta, _SAME),
        (f"{prefix}.running_mean", layer.moving_mean, _SAME),
        (f"{prefix}.running_var", layer.moving_variance, _SAME),
    ]


def _affine(prefix, layer, axes):
    return [(f"{prefix}.weight", layer.kernel, axes), (f"{prefix}.bias", layer.bias, _SAME)]


def _backbone(backbone):
    """Returns the entries of a bottleneck ResNet."""
    entries = []
    for layer in backbone.layers:
        if not layer.weights:
            continue
        parts = layer.name.split("_")  # conv1_conv, stack0_block1_2_bn
        if parts[0] == "conv1":
            name = f"globalmodel.stem.{parts[1]}"
        else:
            block = f"globalmodel.s{int(parts[0][5:]) + 1}.b{int(parts[1][5:]) + 1}"
            if parts[2] == "0":
                name = f"{block}.{'proj' if parts[3] == 'conv' else 'bn'}"
            else:
                letter = "abc"[int(parts[2]) - 1]
                name = f"{block}.f.{letter}" + ("_bn" if parts[3] == "bn" else "")
        if parts[-1] == "bn":
            entries += _norm(name, layer)
        else:
            entries.append((f"{name}.weight", layer.kernel, _CONV))
    return entries


def official_entries(network: keras.Model) -> list[tuple[str, keras.Variable, tuple | None]]:
    """Returns (official name, our variable, transposition from theirs to ours) of each tensor.

    Raises:
      InputError: when the authors' code has no network like this one.
    """
    backbone = network.get_layer("backbone")
    if not any(layer.name == "stack0_block0_3_conv" for layer in backbone.layers):
        raise InputError("the authors' code has bottleneck ResNets only (resnet50, 101, 152)")
    names = {layer.name for layer in network.layers}
    entries = _backbone(backbone)
    entries.append(("pool_g.p", network.get_layer("gem").p, _SAME))
    entries += _affine("fc_t", network.get_layer("global"), _DENSE)
    entries += _affine("fc", network.get_layer("descriptor"), _DENSE)
    local = network.get_layer("local")
    entries += _affine("localmodel.conv1", local.conv, _CONV) + _norm("localmodel.bn", local.norm)
    if local.use_attention:
        entries += _affine("localmodel.conv2", local.score, _CONV)
    if "multi_atrous" in names:
        atrous = network.get_layer("multi_atrous")
        for i, layer in enumerate([atrous.point, *atrous.dilated]):
            entries += _affine(f"localmodel.aspp.aspp.{i}", layer, _CONV)
        entries += _affine("localmodel.aspp.im_pool.1", atrous.pooled, _CONV)
        entries += _affine("localmodel.aspp.conv_after.0", atrous.reduce, _CONV)
    return entries


def load_state_dict(network: keras.Model, state: Mapping[str, np.ndarray]) -> list[str]:
    """Fills every variable of the network from an official `state_dict`.

    Args:
      network: from `build_dolg`, with a bottleneck ResNet and the official preprocessing.
      state: arrays by official name.

    Returns:
      The names that were ignored: counters and the class head.

    Raises:
      InputError: naming the first tensor that is missing, of another shape, or left over.
    """
    entries = official_entries(network)
    for name, variable, axes in entries:
        if name not in state:
            raise InputError(f"the checkpoint has no {name}, which {variable.path} needs")
        array = np.asarray(state[name])
        if axes is not None and array.ndim == len(axes):
            array = array.transpose(axes)
        if array.shape != tuple(variable.shape):
            raise InputError(
                f"{name} has shape {array.shape} in our layout, {variable.path} needs "
                f"{tuple(variable.shape)}"
            )
        variable.assign(array)
    used = {name for name, _, _ in entries}
    rest = [name for name in state if name not in used]
    ignored = [
        name
        for name in rest
        if name.endswith(IGNORED_SUFFIXES) or name.startswith(IGNORED_PREFIXES)
    ]
    unknown = sorted(set(rest) - set(ignored))
    if unknown:
        raise InputError(f"the checkpoint's {unknown[0]} fits nothing in this network")
    return ignored
