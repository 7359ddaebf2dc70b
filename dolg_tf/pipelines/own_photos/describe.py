"""New photos are described, in batches that are kept as they come."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from dolg_tf.data import photo_ids
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.pipelines.own_photos.described import Described
from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.retrieval import norms
from dolg_tf.retrieval.extract import ahead, batches
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import Describe
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage import progress

log = logging.getLogger(__name__)

_PART = 64  # photos that are kept at a time: the most that a killed run loses
_BATCH = 16  # photos of equal size that are described together
_BLANK = (64, 64)  # rows and columns
_TOO_LARGE = "too large for the memory"  # as decoding says it
_NOT_SOUND = "the network's numbers for it are not of unit length, or not finite"


@dataclasses.dataclass(frozen=True, slots=True)
class _Hashed(Photo):
    """A photo whose file's SHA-256 is noted when it is read."""

    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    def read(self) -> bytes:
        try:
            data = Photo.read(self)
        except FileNotFoundError:
            raise
        except OSError as error:  # of this file alone, as long as its folder is there
            if not pathlib.Path(self.file).parent.is_dir():
                raise
            raise UnusablePhoto("corrupt", f"cannot be read ({error.strerror})") from error
        self.digests[self.id] = hashlib.sha256(data).hexdigest()
        return data


def width(describe: Describe) -> int:
    """Returns the length of a descriptor; the model has answered once then."""
    return describe(np.zeros((1, *_BLANK, 3), np.uint8)).shape[1]


def _are_sound(rows: np.ndarray) -> np.ndarray:
    """Returns bool (B,): whether descriptors (B, D) are finite and of unit length."""
    return np.abs(norms.norms_of(rows, "descriptors") - 1) <= norms.TOLERANCE


def describe_photos(
    photos: list[File],
    described: Described,
    describe: Describe,
    how: Preparation,
    told: Callable[[int], None] = lambda done: None,
) -> None:
    """Describes photos and keeps their descriptors, or why there are none.

    Args:
      photos: in any order.
      described: takes the descriptors.
      describe: uint8 RGB (B, H, W, 3) -> float32 (B, D).
      how: photos are shrunk before.
      told: is called with the number of photos done, after each part.

    Raises:
      InputError: when the disk of the photos is lost.
    """
    digests, numbers = {}, width(describe)
    stream = ahead.decode_ahead((readable(one.id, one.path, digests) for one in photos), how)
    with contextlib.closing(stream):
        images = iter(progress.track(stream, len(photos), "describe"))
        for start in range(0, len(photos), _PART):
            part = photos[start : start + _PART]
            rows, reasons = describe_images(
                itertools.islice(images, len(part)), [photo.path for photo in part], describe
            )
            found = [
                (photo, digests.pop(photo.id, ""), reasons.get(row, ""))
                for row, photo in enumerate(part)
            ]
            described.add(rows.reshape(-1, numbers), found)
            told(start + len(part))


def readable(name: str, path: str, digests: dict[str, str]) -> Photo:
    """Returns a photo whose faults stop no other one.

    Args:
      name: of the photo, which must fit into a line of a table.
      path: of its file.
      digests: is given the file's SHA-256 by name, once it is read.
    """
    fault = photo_ids.fault_of(name)
    fault = f"{fault}; rename it" if fault else ""
    return _Hashed(name, path, turn=True, fault=fault, digests=digests)


def describe_images(
    images: Iterable[np.ndarray | str], paths: Sequence[str], describe: Describe
) -> tuple[np.ndarray, dict[int, str]]:
    """Describes decoded photos.

    Args:
      images: of `decode_ahead`.
      paths: of their files.
      describe: uint8 RGB (B, H, W, 3) -> float32 (B, D).

    Returns:
      The descriptors of those that have one, in their order, and why the others have none, by their
      number.
    """
    reasons = {}

    def readable() -> Iterator[tuple[int, np.ndarray]]:
        for row, (path, image) in enumerate(zip(paths, images, strict=True)):
            if isinstance(image, str):
                reasons[row] = image.removeprefix(f"{path}: ")
            else:
                yield row, image

    rows, there = batches.describe_batches(
        readable(),
        describe,
        len(paths),
        _BATCH,
        lambda row, _: reasons.setdefault(row, _TOO_LARGE),
    )
    for row in np.flatnonzero(there & ~_are_sound(rows)):
        reasons[int(row)], there[row] = _NOT_SOUND, False
    return rows[there], reasons
