"""The photos to describe: a folder, CSV, ground truth or TFRecords become (id, file, box)."""

import concurrent.futures
import dataclasses
import glob
import hashlib
import logging
import os
import pathlib
import stat
from collections.abc import Iterable, Mapping

import numpy as np

from dolg_tf.data import photo_files, photo_folders, photo_ids
from dolg_tf.retrieval.extract import photo_records
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

_STAT_THREADS = 16  # each call takes milliseconds on a network disk
_STAT_PHOTOS = 4096  # per task of a thread
# How the authors' codes make whole pixels of a box, see `decoding`.
BOX_ROUNDINGS = ("dolg", "delf", "how")
QUERY_SCALES = ("photo", "crop")


@dataclasses.dataclass(frozen=True, slots=True)
class Photo:
    """A photo to describe.

    Attributes:
      id: its path relative to the image root, without suffix unless another photo of the folder
        has the same name but for it; in a TFRecord its `image/id`.
      file: where it is: a file of its own, which may be missing, or a TFRecord file.
      box: (left, top, right, bottom) in pixels, the part that is cut out; None: the whole photo.
      start: byte of the TFRecord file at which its record starts; -1: it has a file of its own.
      record_size: of the record, in bytes.
      turn: whether it is to be turned by its EXIF orientation.
      fault: why it cannot be described, whatever its file holds; "": nothing is known.
    """

    id: str
    file: str | os.PathLike
    box: tuple[float, float, float, float] | None = None
    start: int = -1
    record_size: int = -1
    turn: bool = False
    fault: str = ""

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
          ValueError: when its record is damaged, or it is a folder, a pipe or a device, or larger
            than photos are.
        """
        if self.start >= 0:
            return photo_records.read_record(self.file, self.start)
        return photo_files.read_file(self.file)


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
    """Photos in the order of their descriptors.

    Attributes:
      image_root: what ids are relative to.
      photos: all of them.
      crop: whether they are cut to boxes.
      upright: whether they are described as EXIF orientation turns them.
      image_roots: folders by label, with which ids begin; None: ids are relative to `image_root`.
    """

    image_root: pathlib.Path
    photos: tuple[Photo, ...]
    crop: bool = False
    upright: bool = False
    image_roots: Mapping[str, str] | None = None

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


# --- which photos ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """Which photos are described, and where the descriptor set goes."""

    images: str = option(
        "photo, folder of photos, CSV with a column path or id, gnd_*.pkl or .mat, or a glob of "
        "TFRecords with DELG's schema"
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
    max_side: int = option(
        "shrink photos to this longest side, DELF's bound by default; 0: never", 1024, unit="pixels"
    )
    query_scale: str = option(
        "what --max_side bounds in a cropped query: its photo, so that the crop keeps its photo's "
        "scale as in DELF and HOW, or the crop itself",
        "photo",
        choices=QUERY_SCALES,
    )
    box_rounding: str = option(
        "whose rule makes whole pixels of a query's box: dolg truncates; delf and how round, and "
        "pad with black what leaves the photo",
        "dolg",
        choices=BOX_ROUNDINGS,
    )
    upright: bool | None = option(
        "turn photos by their EXIF orientation; unset: yes for a folder, a photo, a CSV and a "
        "ground truth of `dolg ground-truth`, no for a benchmark's, as recorded for TFRecords",
        None,
    )
    max_pixels: int = option(
        "refuse photos with more pixels, as unreadable; 0: none",
        photo_files.MAX_PIXELS,
        unit="pixels",
    )
    batch_size: int = option("photos of equal size per batch, at most", 16, unit="photos")
    max_bad: int = option(
        "unreadable photos to tolerate; they are listed in meta.json", 0, unit="photos"
    )

    def __post_init__(self):
        if self.subset not in ("", "query", "index"):
            raise InputError(f"--subset={self.subset} must be query or index")
        at_least(self, max_side=0, max_pixels=0, batch_size=1, max_bad=0)


# --- listing them ----------------------------------------------------------------------


def _named(names: Iterable[tuple[str, str]], root: files.Path, upright: bool) -> list[Photo]:
    """Returns the photos of (place in a list, name)."""
    finder = photo_folders.Finder(root)
    return [Photo(*finder.find(name, where), turn=upright) for where, name in names]


def _from_folder(folder: pathlib.Path, root: pathlib.Path, upright: bool) -> list[Photo]:
    if not folder.is_relative_to(root):
        raise InputError(f"--images={folder} is not inside --image_root={root}")
    found = photo_folders.photos_below(folder, root)
    return [Photo(id_, file, turn=upright) for id_, file in found]


def _from_photo(path: pathlib.Path, root: pathlib.Path, upright: bool) -> list[Photo]:
    if not path.is_relative_to(root):
        raise InputError(f"--images={path} is not inside --image_root={root}")
    return _named([(str(path), path.relative_to(root).as_posix())], root, upright)


def _from_ground_truth(
    path: pathlib.Path, root: pathlib.Path, settings: PhotosConfig
) -> tuple[list[Photo], bool]:
    """Returns the photos, and whether they are turned."""
    task = load_ground_truth(path)
    upright = task.upright if settings.upright is None else settings.upright
    if upright and not task.upright and settings.subset == "query" and settings.crop_queries:
        log.warning(
            "%s does not say that its boxes are of photos turned by EXIF orientation; give "
            "--noupright unless they are",
            path,
        )
    names = task.query_ids if settings.subset == "query" else task.index_ids
    found = _named(((str(path), name) for name in names), root, upright)
    if settings.subset == "query" and settings.crop_queries:
        boxes = (query.box for query in task.queries)
        found = [
            dataclasses.replace(photo, box=box) for photo, box in zip(found, boxes, strict=True)
        ]
    return found, upright


class TurnedRecords(InputError):
    """Records hold photos that were turned, which are wanted as they are stored.

    Attributes:
      told: how many, without a remedy.
    """

    def __init__(self, told: str):
        super().__init__(
            f"{told}, which --noupright cannot undo; leave it out, or build the records again with "
            "--noupright"
        )
        self.told = told


def _from_records(pattern: str, upright: bool | None) -> tuple[list[Photo], bool]:
    """Returns the photos, and whether they are turned: when they were written, or by us."""
    found, turned = [], 0
    for record in photo_records.list_records(pattern):
        turn = bool(upright) and not record.upright
        found.append(Photo(record.id, record.file, None, record.start, record.size, turn))
        turned += record.upright
    told = (
        f"--images={pattern}: {turned} of {len(found)} records hold photos that were turned by "
        "their EXIF orientation"
    )
    if turned and upright is False:
        raise TurnedRecords(told)
    if 0 < turned < len(found) and not upright:
        raise InputError(f"{told}, the others as they are stored; give --upright to turn all")
    return found, turned > 0 if upright is None else upright


def _listing(
    root: pathlib.Path, photos: list[Photo], source, *, crop: bool = False, upright: bool
) -> Listing:
    """Checks the ids of photos."""
    if not photos:
        raise InputError(f"--images={source}: no photos there")
    rows = {}
    for row, photo in enumerate(photos):
        other = rows.setdefault(photo.id, row)
        if other != row:
            raise InputError(
                f"{source}: {photo.where} and {photos[other].where} have the same id, "
                f"{photo.id!r}; keep only one"
            )
        fault = photo_ids.fault_of(photo.id)
        if fault:
            photos[row] = dataclasses.replace(photo, fault=f"{fault}; rename it")
    return Listing(root, tuple(photos), crop, upright)


def list_named(
    names: Iterable[str], root: files.Path | Mapping[str, str], where, *, upright: bool
) -> Listing:
    """Lists photos by name or id.

    Args:
      names: relative to the root, with or without suffix.
      root: the folder; or folders by label, of photos whose ids keep suffix and label.
      where: the names come from, for errors.
      upright: whether to turn photos by their EXIF orientation.

    Raises:
      InputError: when there is no such folder or there are no names, two are the same, or one leads
        out of the root or may be one of several photos.
    """
    for folder in root.values() if isinstance(root, Mapping) else [root]:
        if not pathlib.Path(folder).is_dir():
            raise InputError(f"--image_root={folder}: no such folder")
    if not isinstance(root, Mapping):
        photos = _named(((where, name) for name in names), root, upright)
        return _listing(pathlib.Path(root), photos, where, upright=upright)
    finder = photo_folders.Finder(root)
    photos = [Photo(name, finder.find(name, where)[1], turn=upright) for name in names]
    first = pathlib.Path(next(iter(root.values())))
    found = _listing(first, photos, where, upright=upright)
    return dataclasses.replace(found, image_roots=root)


def list_photos(settings: PhotosConfig) -> Listing:
    """Lists the photos of a folder (recursive, sorted), a CSV, a ground truth or TFRecords, or one.

    Photos named in a file are in the order of that file, and missing ones are listed too: they are
    counted when they are read.

    Raises:
      InputError: when there are none, two have the same id, or a name leads out of the image root.
    """
    source = pathlib.Path(settings.images)
    is_truth = source.suffix in (".pkl", ".mat")
    if is_truth != bool(settings.subset):
        remedy = "needs --subset=query or --subset=index" if is_truth else "takes no --subset"
        raise InputError(f"--images={source} {remedy}")
    root = _root(settings, source)
    upright = settings.upright is not False
    crop = settings.subset == "query" and settings.crop_queries
    if source.is_dir():
        found = _from_folder(source, root, upright)
    elif is_truth:
        found, upright = _from_ground_truth(source, root, settings)
    elif source.suffix.lower() == ".csv":
        names = ((where, name) for where, (name,) in read_table(source, ["path", "id"]))
        found = _named(names, root, upright)
    elif source.is_file() and photo_folders.is_photo(str(source), source.name):
        found = _from_photo(source, root, upright)
    elif source.suffix.lower() == ".txt":
        raise InputError(
            f"--images={source} is not a folder, a photo, a .csv, a .pkl, a .mat or TFRecords"
        )
    else:
        found, upright = _from_records(settings.images, settings.upright)
    return _listing(root, found, source, crop=crop, upright=upright)


def _root(settings: PhotosConfig, source: pathlib.Path) -> pathlib.Path:
    """Returns the folder that ids are relative to."""
    pattern = not source.exists() and glob.has_magic(settings.images)
    if not pattern and not source.is_file() and not source.is_dir():
        raise InputError(f"--images={source}: no such file or folder")
    root = pathlib.Path(settings.image_root or (source if source.is_dir() else source.parent))
    while pattern and glob.has_magic(str(root)):
        root = root.parent
    if not root.is_dir():
        wrong = f"image_root={root}" if settings.image_root else f"images={source}"
        raise InputError(f"--{wrong}: no such folder")
    return root
