"""ImageNet networks of PyTorch code bases: the variable of ours for each of their tensors."""

import dataclasses
from collections.abc import Callable, Iterable

import keras

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, Preprocessing
from dolg_tf.stage.config import InputError
from dolg_tf.weights.assign import CONV, DEPTHWISE, Entry, norm_entries

# EfficientNet-Lite was trained on RGB levels, (x - 127) / 128.
LITE_PREPROCESSING = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
_CLASSIFIER = "the classifier of ImageNet's classes"
TOP = "the top convolution, which --stride32=last_block leaves out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """The names that one code base gives the tensors of a network.

    Attributes:
      known_by: a tensor that all of its files have, and no others.
      preprocessing: what these networks were trained with.
      entries: function from the backbone of `build_dolg` to its entries; raises InputError for
        another network.
      left_out: {prefix of a name: why such a tensor is not needed}.
    """

    known_by: str
    preprocessing: Preprocessing
    entries: Callable[[keras.Model], list[Entry]]
    left_out: dict[str, str]

    def ignored_because(self, name: str) -> str:
        """Returns why a tensor without a variable is not needed; "" if that is unknown."""
        if name.endswith(".num_batches_tracked"):
            return "a counter of training steps"
        return next((why for start, why in self.left_out.items() if name.startswith(start)), "")


def find_naming(names: Iterable[str]) -> Naming:
    """Returns the naming that a file follows.

    Args:
      names: of its tensors, without `module.`.

    Raises:
      InputError: when the naming is unknown.
    """
    names = list(names)
    for naming in (TORCHVISION, PYCLS, EFFICIENTNET_PYTORCH):
        if naming.known_by in names:
            return naming
    if any(name.startswith("globalmodel.") for name in names):
        raise InputError(
            "this is a whole DOLG of the authors' code: convert it with "
            "`dolg convert`, and give the result to --init_from"
        )
    if "conv_stem.weight" in names:
        raise InputError(
            "this is an EfficientNet of timm, whose names do not show how it pads and what it was "
            "trained on: for B0 to B5 give a KerasHub preset, for Lite efficientnet_lite0 or "
            "efficientnet_lite2"
        )
    example = f"; {names[0]}, for instance, is unknown" if names else ""
    hint = ""
    if example and names[0].startswith(("model.", "_orig_mod.")):
        hint = "; first remove the prefix that training code put before all names"
    raise InputError(
        "this is neither a ResNet of torchvision, timm or pycls nor an efficientnet_pytorch"
        f"{example}{hint}"
    )


# --- ResNets ---------------------------------------------------------------------------


def resnet_entries(name_of: Callable[..., str]) -> Callable[[keras.Model], list[Entry]]:
    """Returns the `entries` of a naming of ResNets, whole or cut off behind a stack.

    Args:
      name_of: function of (stack, block, number in the block, "conv" or "bn"); the first three are
        counted as in KerasHub's layers (`stack0_block1_2_bn`; number 0 is the projection) and None
        for the stem.
    """

    def entries(backbone: keras.Model) -> list[Entry]:
        layers = [layer for layer in backbone.layers if layer.weights]
        if layers[0].name != "conv1_conv":
            raise InputError("this is a ResNet, but --backbone is not")
        found = []
        for layer in layers:
            *place, kind = layer.name.split("_")
            if place == ["conv1"]:
                name = name_of(None, None, None, kind)
            else:
                stack, block, number = place
                number = int(number)
                name = name_of(int(stack[len("stack") :]), int(block[len("block") :]), number, kind)
            if kind == "bn":
                found += norm_entries(name, layer)
            else:
                found.append((f"{name}.weight", layer.kernel, CONV))
        return found

    return entries


def torchvision_name(stack, block, number, kind) -> str:
    """Returns torchvision's name of a part, see `resnet_entries`."""
    if stack is None:
        return f"{kind}1"
    part = f"{kind}{number}" if number else f"downsample.{0 if kind == 'conv' else 1}"
    return f"layer{stack + 1}.{block}.{part}"


def _pycls_name(stack, block, number, kind) -> str:
    if stack is None:
        return f"stem.{kind}"
    if number:
        part = f"f.{'abc'[number - 1]}{'_bn' if kind == 'bn' else ''}"
    else:
        part = "proj" if kind == "conv" else "bn"
    return f"s{stack + 1}.b{block + 1}.{part}"


# torchvision and timm. Resnet*d, *s, SE and wide ones have other names or shapes; timm's resnetaa50
# and resnetblur* have the same ones and cannot be distinguished.
TORCHVISION = Naming(
    known_by="layer1.0.conv1.weight",
    preprocessing=Preprocessing(),
    entries=resnet_entries(torchvision_name),
    left_out={"fc.": _CLASSIFIER},
)
# The authors' ImageNet files. Their code base, pycls, reads photos as BGR.
PYCLS = Naming(
    known_by="s1.b1.f.a.weight",
    preprocessing=OFFICIAL_PREPROCESSING,
    entries=resnet_entries(_pycls_name),
    left_out={"head.": _CLASSIFIER},
)

# --- EfficientNet-Lite -----------------------------------------------------------------

_IN_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "dwconv_bn": "_bn1",
    "project": "_project_conv",
    "project_bn": "_bn2",
}
_OUTSIDE = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
}


def _lite_entries(backbone: keras.Model) -> list[Entry]:
    layers = [layer for layer in backbone.layers if layer.weights]
    if layers[0].name != "stem_conv":
        raise InputError("this is an EfficientNet, but --backbone is not")
    if backbone.get_layer("block1a_dwconv").padding != "same":
        raise InputError(
            "this EfficientNet was trained with TensorFlow's 'same' padding, which only the "
            "efficientnet_lite backbones have here; for B0 to B5 give a KerasHub preset"
        )
    blocks = []  # block1a, block2a, block2b, ...: numbered consecutively there
    found = []
    for layer in layers:
        name = _OUTSIDE.get(layer.name)
        if name is None:
            block, part = layer.name.split("_", 1)
            if block not in blocks:
                blocks.append(block)
            name = f"_blocks.{len(blocks) - 1}.{_IN_BLOCK[part]}"
        if isinstance(layer, keras.layers.BatchNormalization):
            found += norm_entries(name, layer)
        else:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            found.append((f"{name}.weight", layer.kernel, DEPTHWISE if depthwise else CONV))
    return found


EFFICIENTNET_PYTORCH = Naming(
    known_by="_conv_stem.weight",
    preprocessing=LITE_PREPROCESSING,
    entries=_lite_entries,
    left_out={"_fc.": _CLASSIFIER, "_conv_head.": TOP, "_bn1.": TOP},
)
