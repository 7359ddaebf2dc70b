"""What describes the photos: a SavedModel, or a ready network by its name."""

import dataclasses
import pathlib
import re

from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import Describer, LoadedModel, load_model, open_describer
from dolg_tf.retrieval.extract.photos import PhotosConfig
from dolg_tf.serving import ready
from dolg_tf.stage.config import InputError

_NAME = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Model:
    """A SavedModel, not loaded yet.

    Attributes:
      path: of the SavedModel.
      max_side: longest side of the photos that it describes, pixels.
      about: its identity and scales.
    """

    path: pathlib.Path
    max_side: int
    about: Describer

    @property
    def how(self) -> Preparation:
        """How photos are shrunk before they are described."""
        return Preparation(self.max_side, "crop")

    @property
    def made(self) -> dict:
        """What a descriptor set says of how it was made."""
        return {
            "model_hash": self.about.model_hash,
            "scales": list(self.about.scales),
            "crop": False,
            "upright": True,
            "max_side": self.max_side,
            "dtype": "float32",
            "whitening": self.about.whitening,
        }

    def load(self) -> LoadedModel:
        """Loads it."""
        return load_model(self.path, self.about.scales)


def check(name_or_path: str) -> None:
    """Makes sure that there is such a model, at once: before any work begins.

    Raises:
      InputError: when there is none, naming the command that installs a missing package.
    """
    if _is_path(name_or_path):
        open_describer(name_or_path, ())
    else:
        ready.check(name_or_path, "model")


def open_model(name_or_path: str) -> Model:
    """Opens a model; a ready network is made when it is asked for the first time.

    Raises:
      InputError: when there is none, or it cannot be made.
    """
    if _is_path(name_or_path):
        path, side = pathlib.Path(name_or_path), PhotosConfig.max_side
    else:
        path, side = ready.saved_model(name_or_path), ready.SIDE
    return Model(path, side, open_describer(path, ()))


def _is_path(name_or_path: str) -> bool:
    if pathlib.Path(name_or_path, "saved_model.pb").exists():
        return True
    if _NAME.fullmatch(name_or_path):
        return False
    raise InputError(f"--model={name_or_path}: no such SavedModel; `dolg export` writes one")
