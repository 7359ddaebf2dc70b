"""The local features of photos, kept by what their files hold, in step with the photos.

`local` is a local feature set whose ids are the SHA-256 of files, and `local.begun` holds sets of
photos that were described since; all are joined when the work is done.
"""

import contextlib
import dataclasses
import itertools
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np

from dolg_tf.pipelines.own_photos.describe import readable
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.retrieval.descriptors import refuse_other
from dolg_tf.retrieval.extract import ahead
from dolg_tf.retrieval.extract.decoding import Preparation, Prepared
from dolg_tf.retrieval.local import feature_set, linking, writing
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.local.making import LocalConfig, LocalMaking, LocalOf, making
from dolg_tf.stage import progress, workshop
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

# On photos of 320 pixels geometry says no more than counting does; docs/search.md has the rest.
SIDE = 1024
_HOW = Preparation(SIDE, "crop")
_ASKED = LocalConfig(local=True, local_scales=(1.0,), max_features=600, local_dtype="bits")
_NUMBERS = 16  # bytes of a feature besides its descriptor
_PART = 256  # photos that are kept at a time: the most that a killed run loses
_PARTS = 64  # that are joined at a time: each holds a few files open


def how_made(model: Model) -> LocalMaking:
    """Returns how a model makes the local features.

    Raises:
      InputError: when it makes none.
    """
    about = model.about
    if about.local is None:
        raise InputError(
            f"--verify: the SavedModel {model.path} was exported before models gave local "
            "features; export it again with `dolg export`"
        )
    return making(_ASKED, about.local, model.path, about.model_hash)


def find(local_of: LocalOf, how: LocalMaking, photo: Prepared) -> LocalFeatures:
    """Returns the local features of a photo; none where it is too large for the memory."""
    try:
        return how.features(local_of, photo.image, photo.size)
    except MemoryError:
        return nothing(photo.size)


def nothing(size: tuple[int, int] = (0, 0)) -> LocalFeatures:
    """Returns no features."""
    rows = np.empty((0, 2), np.float32)
    return LocalFeatures(rows, rows[:, 0], rows[:, 0], rows, size)


def prepared(photos: Mapping[str, str]) -> Iterator[Prepared | str]:
    """Yields photos, paths by name, as they are described, or why they cannot be read."""
    return ahead.prepare_ahead((readable(name, path, {}) for name, path in photos.items()), _HOW)


class KeptFeatures:
    """Local features of photos by the SHA-256 of their files.

    Args:
      folder: that holds them.
      model: makes them.

    Raises:
      InputError: when the model makes none.
    """

    def __init__(self, folder: pathlib.Path, model: Model):
        self._how, self._dimensions = how_made(model), model.about.local.get("dimensions")
        self._path, self._begun = folder / "local", folder / "local.begun"
        self._meta = model.made | self._how.meta() | {"max_side": SIDE}
        self._read()

    def _read(self) -> None:
        self._sets = []
        for path in (self._path, *sorted(self._begun.glob("part-*"))):
            if not workshop.recover(path):
                continue
            try:
                found = feature_set.read(path)
                refuse_other(path, "made", found.meta, self._meta)
            except InputError as error:
                log.warning("local features that were found before do not count: %s", error)
                shutil.rmtree(path, ignore_errors=True)
                continue
            self._sets.append(found)
        self._places = {}
        for found in self._sets:
            self._places |= {digest: (found, row) for row, digest in enumerate(found.ids)}

    def __getitem__(self, digest: str) -> LocalFeatures:
        """Returns the features of a photo; none where none are known."""
        if digest not in self._places:
            return nothing()
        found, row = self._places[digest]
        return found[row]

    def of_file(self, path: str, local_of: LocalOf) -> LocalFeatures:
        """Returns the features of a photo that is searched for; none if it cannot be read."""
        with contextlib.closing(prepared({"query": path})) as stream:
            photo = next(stream)
        found = nothing() if isinstance(photo, str) else find(local_of, self._how, photo)
        if not len(found):
            return found
        bits = feature_set.packed(found.descriptors, "bits")  # as those of the photos
        rows = feature_set.unpacked(bits, "bits", found.descriptors.shape[1])
        return dataclasses.replace(found, descriptors=rows)

    def update(self, photos: Mapping[str, str], local_of: LocalOf) -> None:
        """Finds the features of photos that have none yet, and drops those of others.

        Args:
          photos: path of each photo, by the SHA-256 of its file.
          local_of: of the model.
        """
        todo = {digest: path for digest, path in photos.items() if digest not in self._places}
        if todo:
            self._tell(len(todo))
            self._describe(todo, local_of)
        if self._begun.exists() or self._places.keys() != photos.keys():
            self._join(photos)

    def _tell(self, count: int) -> None:
        feature = _NUMBERS + -(-(self._dimensions or 128) // 8)
        size = count * _ASKED.max_features * feature
        log.info(
            "local features of %d photos are to be found, once; they take up to %s in %s",
            *(count, f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{-(-size // 10**6)} MB"),
            self._path.parent,
        )

    def _describe(self, todo: dict[str, str], local_of: LocalOf) -> None:
        names = list(todo)
        with contextlib.closing(prepared(todo)) as stream:
            images = iter(progress.track(stream, len(todo), "local features"))
            for number, start in enumerate(range(0, len(names), _PART)):
                part = zip(names[start : start + _PART], itertools.islice(images, _PART))  # noqa: B905
                features = (
                    (name, nothing() if isinstance(one, str) else find(local_of, self._how, one))
                    for name, one in part
                )
                about = {"image_root": None, "bad": []}
                path = self._begun / f"part-{len(self._sets):05d}-{number:07d}"
                writing.write(path, features, self._meta | about)
                self._sets.append(feature_set.read(path))
                if len(self._sets) > _PARTS:
                    self._join(None)
        self._read()

    def _join(self, photos: Mapping[str, str] | None) -> None:
        """Makes one set of all, of these photos alone; None: of all."""
        parts: list[tuple[LocalFeatureSet, np.ndarray]] = []
        seen = set()
        for found in self._sets:
            rows = [
                row
                for row, digest in enumerate(found.ids)
                if digest not in seen and (photos is None or digest in photos)
            ]
            seen |= set(found.ids)
            parts.append((found, np.array(rows, np.int64)))
        if not parts:
            return
        linking.join(self._path, parts)
        shutil.rmtree(self._begun, ignore_errors=True)
        self._read()
