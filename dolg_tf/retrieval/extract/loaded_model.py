"""A SavedModel in memory, and all that pictures of a photo ask of it."""

import pathlib

import numpy as np

from dolg_tf.retrieval.extract.decoding import load_photo
from dolg_tf.retrieval.extract.model import describe_by, load_model, open_describer
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError


class LoadedModel:
    """A SavedModel of mode `serving`, loaded once.

    Args:
      saved_model: the directory.

    Raises:
      InputError: when there is none, or it describes no photos.
    """

    def __init__(self, saved_model: files.Path):
        self.path = pathlib.Path(saved_model)
        self.about = open_describer(self.path, ())
        self._model = load_model(self.path)

    def describe(self, image: np.ndarray, scales: tuple[float, ...] = ()) -> np.ndarray:
        """Returns the descriptor of a photo, as extraction stores it.

        Args:
          image: uint8 RGB (H, W, 3).
          scales: of the photo, whose descriptors are averaged; none: the model's own.

        Returns:
          float32 (D,) of unit L2 norm.
        """
        return describe_by(self._model, scales or self.about.scales)(image[None])[0]

    def maps(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `attention`, `orthogonal_norm` and `explained_energy`, float32 (h, w).

        Args:
          image: uint8 RGB (H, W, 3).

        Raises:
          InputError: when the network has no local branch.
        """
        return self._of_local_branch("maps", image)

    def local_features(self, image: np.ndarray) -> np.ndarray:
        """Returns the local features, float32 (h, w, C): attention times a unit vector.

        Args:
          image: uint8 RGB (H, W, 3).

        Raises:
          InputError: when the network has no local branch, or was exported before there was this
            signature.
        """
        return self._of_local_branch("local_features", image)["features"]

    def _of_local_branch(self, signature: str, image: np.ndarray) -> dict[str, np.ndarray]:
        import tensorflow as tf

        there = sorted(self._model.signatures)
        if signature not in there:
            where = f"--saved_model={self.path} has no signature {signature!r}"
            if "images" not in there:
                raise InputError(f"{where}, only {there}; export it with --mode=serving")
            if "maps" in there:
                raise InputError(
                    f"{where}, it was exported before there was one; export it again with "
                    "`dolg export`"
                )
            raise InputError(
                f"{where}: its network has no local branch (--fusion=global_only), so there are no "
                "local features to show; take one that has"
            )
        found = self._model.signatures[signature](image=tf.constant(image))
        return {name: tensor.numpy() for name, tensor in found.items()}


def read_photo(photo: Photo | files.Path, max_side: int = 0) -> np.ndarray:
    """Reads a photo as extraction does.

    Args:
      photo: one of a listing, cut to its box where it has one, or the path of a JPEG, PNG, GIF, BMP
        or WebP file.
      max_side: longest side in pixels that it is shrunk to; 0: never.

    Returns:
      uint8 RGB (H, W, 3).

    Raises:
      InputError: when it cannot be read.
    """
    if not isinstance(photo, Photo):
        photo = Photo(pathlib.Path(photo).stem, photo)
    image = load_photo(photo, max_side)
    if isinstance(image, str):
        raise InputError(image)
    return image
