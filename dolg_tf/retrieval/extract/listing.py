"""Photos in the order of their descriptors: where each is, and what tells them from others."""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterable

import numpy as np

from dolg_tf.retrieval.extract.photo_records import read_record

_STAT_THREADS = 16  # on a network disk each question takes milliseconds
_STAT_PHOTOS = 4096  # that a thread asks for in one go


@dataclasses.dataclass(frozen=True, slots=True)
class Photo:
    """A photo to describe.

    Attributes:
      id: its path relative to the image root, without suffix; in a TFRecord its `image/id`.
      file: where it is, which may be missing: a file of its own, or a TFRecord file.
      box: (left, top, right, bottom) in pixels, what is cut out; None: the whole photo.
      start: byte of the TFRecord file where its record starts; -1: it has a file of its own.
      record_size: of the record, in bytes.
    """

    id: str
    file: str | os.PathLike
    box: tuple[float, float, float, float] | None = None
    start: int = -1
    record_size: int = -1

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(self.file)

    @property
    def where(self) -> str:
        """Names the photo's place in errors."""
        return f"{self.file}" if self.start < 0 else f"{self.file}, record at byte {self.start}"

    def read(self) -> bytes:
        """Returns the encoded photo.

        Raises:
          OSError: when the file cannot be read.
          ValueError: when its record is damaged.
        """
        if self.start >= 0:
            return read_record(self.file, self.start)
        return self.path.read_bytes()


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Hashes of a listing: whoever has the same ones describes the same photos.

    Attributes:
      names: of all ids and boxes.
      images: of all ids, boxes and file sizes.
      shards: of the ids, boxes and file sizes of each shard.
    """

    names: str
    images: str
    shards: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Photos in the order of their descriptors, and whether they are cut to boxes."""

    image_root: pathlib.Path
    photos: tuple[Photo, ...]
    crop: bool

    def sizes(self) -> np.ndarray:
        """Returns the size of each photo in bytes, int64 (N,); -1: there is no such file."""
        with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
            starts = range(0, len(self.photos), _STAT_PHOTOS)
            parts = pool.map(lambda at: _sizes(self.photos[at : at + _STAT_PHOTOS]), starts)
            return np.array([size for part in parts for size in part], np.int64)

    def fingerprints(self, sizes: np.ndarray, shard_photos: int) -> Fingerprints:
        """Returns the hashes of the photos, for shards of `shard_photos` of them each.

        Args:
          sizes: as `sizes` gives them.
          shard_photos: consecutive photos in a shard.
        """
        names, images, shards = hashlib.sha256(), hashlib.sha256(), []
        for at in range(0, len(self.photos), shard_photos):
            photos = self.photos[at : at + shard_photos]
            names.update("".join([repr((photo.id, photo.box)) for photo in photos]).encode())
            found = [None if size < 0 else size for size in sizes[at : at + shard_photos].tolist()]
            text = "".join(
                [repr((p.id, p.box, size)) for p, size in zip(photos, found, strict=True)]
            ).encode()
            images.update(text)
            shards.append(hashlib.sha256(text).hexdigest())
        return Fingerprints(names.hexdigest(), images.hexdigest(), tuple(shards))


def _sizes(photos: Iterable[Photo]) -> list[int]:
    sizes = []
    for photo in photos:
        size = photo.record_size
        if photo.start < 0:
            try:
                found = os.stat(photo.file)  # noqa: PTH116 - a million Path objects take seconds
                size = found.st_size if stat.S_ISREG(found.st_mode) else -1
            except (OSError, ValueError):  # ValueError: a zero byte in the name
                size = -1
        sizes.append(size)
    return sizes
