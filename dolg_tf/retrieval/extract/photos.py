"""The photos to describe: a folder, CSV, ground truth or TFRecords become (id, file, box)."""

import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import logging
import mmap
import os
import pathlib
import posixpath
import stat
from collections.abc import Iterable, Iterator

import numpy as np

from dolg_tf.data.photo_ids import SUFFIXES, check_name, id_of, split_suffix
from dolg_tf.data.records import example, foreign, tfrecord
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

_STAT_THREADS = 16  # each call takes milliseconds on a network disk
_STAT_PHOTOS = 4096  # per task of a thread
_RECORD_HEADER = 12  # bytes: length of a record, and its checksum


@dataclasses.dataclass(frozen=True, slots=True)
class Photo:
    """A photo to describe.

    Attributes:
      id: its path relative to the image root, without suffix; in a TFRecord its `image/id`.
      file: where it is: a file of its own, which may be missing, or a TFRecord file.
      box: (left, top, right, bottom) in pixels, the part that is cut out; None: the whole photo.
      start: byte of the TFRecord file at which its record starts; -1: it has a file of its own.
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
        """The photo's place, for errors."""
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
    """Hashes of a listing: equal hashes mean equal photos.

    Attributes:
      names: hash of all ids and boxes.
      images: hash of all ids, boxes and file sizes.
      shards: a hash per shard, of its ids, boxes and file sizes.
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
        """Returns the size of each photo in bytes, int64 (N,); -1: the file is missing."""
        with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
            starts = range(0, len(self.photos), _STAT_PHOTOS)
            parts = pool.map(lambda at: _sizes(self.photos[at : at + _STAT_PHOTOS]), starts)
            return np.array([size for part in parts for size in part], np.int64)

    def fingerprints(self, sizes: np.ndarray, shard_photos: int) -> Fingerprints:
        """Returns the hashes of the photos, for shards of `shard_photos` each.

        Args:
          sizes: as `sizes` returns them.
          shard_photos: consecutive photos per shard.
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


# --- photos in TFRecords --------------------------------------------------------------


def list_records(pattern: str) -> Iterator[tuple[str, str, int, int]]:
    """Yields id, file, first byte and size in bytes of each record, in file order.

    Args:
      pattern: a glob of TFRecords of DELG's schema.

    Raises:
      InputError: when no file matches, a file is truncated or not a TFRecord, or a record has no
        `image/id`.
    """
    for path, starts in tfrecord.RecordIndex.open(pattern).places():
        if not starts:
            continue
        with (
            pathlib.Path(path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            for start in starts:
                body = start + _RECORD_HEADER
                size = int.from_bytes(data[start : start + 8], "little")
                with data[body : body + size] as record:
                    yield _id(record, path, start), path, start, size


def _id(record: memoryview, path: str, start: int) -> str:
    where = f"{path}, record at byte {start}"
    found, fault = "", ""
    try:
        found = (example.find_bytes(record, b"image/id") or b"").decode()
    except ValueError as error:  # UnicodeDecodeError is one
        fault = f"not a tf.train.Example ({error}); write it again"
    if not found:
        # Outside: while the error lives, its frames hold parts of the file's mapping.
        fault = fault or foreign.schema_fault(bytes(record)) or "its image/id is empty"
        raise InputError(f"{where}: {fault}")
    return found


def read_record(path: str, start: int) -> bytes:
    """Returns the encoded photo of the record that starts at a given byte.

    Raises:
      OSError: when the file cannot be read.
      ValueError: saying what is wrong with the record.
    """
    data = tfrecord.read_at(path, start)
    if data is None:
        raise ValueError("the checksum is wrong")
    encoded = example.find_bytes(memoryview(data), b"image/encoded")
    if not encoded:
        raise ValueError("no image/encoded in the record")
    return encoded


# --- which photos ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """Which photos are described, and where the descriptor set goes."""

    images: str = option(
        "folder of photos, CSV with a column path or id, gnd_*.pkl or .mat, or a glob of TFRecords "
        "with DELG's schema"
    )
    image_root: str = option(
        "folder that ids are relative to; empty: the folder of photos itself, or that of the file",
        "",
    )
    subset: str = option(
        "photos of a ground truth to describe: query or index; empty for any other source", ""
    )
    output: str = option("descriptor set (a directory) to write")
    crop_queries: bool = option("crop the queries of a ground truth to their boxes", True)
    max_side: int = option("shrink photos to this longest side; 0: never", 0, unit="pixels")
    batch_size: int = option("photos of equal size per batch", 16, unit="photos")
    max_bad: int = option(
        "unreadable photos to tolerate; they are listed in meta.json", 0, unit="photos"
    )

    def __post_init__(self):
        if self.subset not in ("", "query", "index"):
            raise InputError(f"--subset={self.subset} must be query or index")
        at_least(self, max_side=0, batch_size=1, max_bad=0)


# --- finding the files ---------------------------------------------------------------


_NO_FILES = contextlib.nullcontext(())


class _Finder:
    """Finds photos by name, reading each folder once."""

    def __init__(self, root: pathlib.Path):
        self._root = root
        self._folders, self._stems = {}, {}

    def _folder(self, name: str) -> str:
        """Returns the path of a folder."""
        if name not in self._folders:
            self._folders[name] = str(files.inside(self._root, name))
        return self._folders[name]

    def _names(self, folder: str) -> dict[str, str]:
        """Returns the files of a folder by their stems; "/" separates several photos of one stem.

        A file of exactly the stem's name comes before photos that have it with a suffix.
        """
        if folder not in self._stems:
            stems, exact = {}, {}
            # Not Path.iterdir, which makes a million Path objects.
            with os.scandir(folder) if pathlib.Path(folder).is_dir() else _NO_FILES as entries:
                for entry in entries:
                    stem, suffix = split_suffix(entry.name)
                    if suffix:
                        stems[stem] = f"{stems[stem]}/{entry.name}" if stem in stems else entry.name
                    elif entry.is_file():
                        exact[stem] = stem
            self._stems[folder] = stems | exact
        return self._stems[folder]

    def find(self, name: str, where) -> Photo:
        """Returns the photo that a list calls `name`, with or without suffix."""
        check_name(name, where)
        parent, last = posixpath.split(name)
        folder = self._folder(parent)
        stem, suffix = split_suffix(last)
        found = last if suffix else self._names(folder).get(stem, stem)
        if "/" in found:
            several = sorted(found.split("/"))
            raise InputError(
                f"{where}: {name!r} may be {several[0]} or {several[1]} in {folder}; keep only one"
            )
        return Photo(id_of(name), f"{folder}/{found}")


def _from_folder(folder: pathlib.Path, root: pathlib.Path) -> list[Photo]:
    if not folder.is_relative_to(root):
        raise InputError(f"--images={folder} is not inside --image_root={root}")

    def fail(error: OSError):
        raise error

    photos, others, links = [], 0, 0
    inside = folder.relative_to(root).as_posix()
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        links += sum(pathlib.Path(parent, name).is_symlink() for name in folders)
        below = posixpath.normpath(posixpath.join(inside, os.path.relpath(parent, folder)))
        prefix = "" if below == "." else f"{below}/"
        for name in sorted(names):
            stem, suffix = split_suffix(name)
            if name.startswith(".") or not suffix:
                others += 1
                continue
            photos.append(Photo(f"{prefix}{stem}", f"{parent}/{name}"))
    if others:
        log.info("%s: %d other files (not jpg, jpeg or png) are ignored", folder, others)
    if links:
        log.warning("%s: %d links to folders are not followed", folder, links)
    return photos


def _from_csv(path: pathlib.Path, finder: _Finder) -> list[Photo]:
    return [finder.find(name, where) for where, (name,) in read_table(path, ["path", "id"])]


def _from_ground_truth(path, subset: str, crop: bool, finder: _Finder) -> list[Photo]:
    task = load_ground_truth(path)
    if subset == "index":
        return [finder.find(name, path) for name in task.index_ids]
    found = [finder.find(name, path) for name in task.query_ids]
    if not crop:
        return found
    return [
        dataclasses.replace(photo, box=query.box)
        for photo, query in zip(found, task.queries, strict=True)
    ]


def _check_ids(photos: list[Photo], source) -> None:
    seen = {}
    for row, photo in enumerate(photos):
        other = seen.setdefault(photo.id, row)
        if other != row:
            raise InputError(
                f"{source}: {photo.where} and {photos[other].where} have the same id, "
                f"{photo.id!r}; keep only one"
            )


def list_photos(settings: PhotosConfig) -> Listing:
    """Lists the photos of a folder (recursive, sorted), a CSV, a ground truth or TFRecords.

    Photos named in a file are in the order of that file, and missing ones are listed too: they are
    counted when they are read.

    Raises:
      InputError: when there are none, two have the same id, or a name leads out of the image root.
    """
    source = pathlib.Path(settings.images)
    is_truth = source.suffix in (".pkl", ".mat")
    pattern = not source.exists() and glob.has_magic(settings.images)
    if not source.exists() and not pattern:
        raise InputError(f"--images={source}: no such file or folder")
    if is_truth != bool(settings.subset):
        remedy = "needs --subset=query or --subset=index" if is_truth else "takes no --subset"
        raise InputError(f"--images={source} {remedy}")
    root = pathlib.Path(settings.image_root or (source if source.is_dir() else source.parent))
    while pattern and glob.has_magic(str(root)):
        root = root.parent
    if not root.is_dir():
        wrong = f"image_root={root}" if settings.image_root else f"images={source}"
        raise InputError(f"--{wrong}: no such folder")
    crop = settings.subset == "query" and settings.crop_queries
    if source.is_dir():
        found = _from_folder(source, root)
    elif is_truth:
        found = _from_ground_truth(source, settings.subset, crop, _Finder(root))
    elif source.suffix == ".csv":
        found = _from_csv(source, _Finder(root))
    elif source.suffix.lower() in (*SUFFIXES, ".txt"):
        raise InputError(f"--images={source} is not a folder, a .csv, a .pkl, a .mat or TFRecords")
    else:
        found = [
            Photo(id_, file, None, start, size)
            for id_, file, start, size in list_records(settings.images)
        ]
    if not found:
        raise InputError(f"--images={source}: no photos (jpg, jpeg, png) there")
    _check_ids(found, source)
    return Listing(root, tuple(found), crop)
