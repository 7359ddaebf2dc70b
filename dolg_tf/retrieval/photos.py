"""Which photos are described: a folder, a CSV or a ground truth becomes (id, path, box)."""

import csv
import dataclasses
import hashlib
import logging
import os
import pathlib

from dolg_tf import files
from dolg_tf.config import InputError, at_least, option
from dolg_tf.retrieval.ground_truth import load_ground_truth

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """The photos of a descriptor set, and where it goes."""

    images: str = option("folder of photos, CSV with a column path or id, or gnd_*.pkl or .mat")
    image_root: str = option(
        "folder that the ids are relative to; empty: the folder itself, or that of the file", ""
    )
    subset: str = option("query or index: which photos of a ground truth; empty: no such", "")
    output: str = option("descriptor set (a directory) to write")
    crop_queries: bool = option("cut the queries of a ground truth to their boxes", True)
    max_side: int = option("shrink photos to this longest side; 0: never", 0, unit="pixels")
    batch_size: int = option("photos of equal size described at once", 16, unit="photos")
    max_bad: int = option("unreadable photos that are tolerated, and listed", 0, unit="photos")

    def __post_init__(self):
        if self.subset not in ("", "query", "index"):
            raise InputError(f"--subset={self.subset} must be query or index")
        at_least(self, max_side=0, batch_size=1, max_bad=0)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo to describe.

    Attributes:
      id: its path relative to the image root, without suffix.
      path: the file, which may be missing.
      box: (left, top, right, bottom) in pixels, what is cut out; None: the whole photo.
    """

    id: str
    path: pathlib.Path
    box: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """Photos in the order of their descriptors, and whether they are cut to boxes."""

    image_root: pathlib.Path
    photos: tuple[Photo, ...]
    crop: bool

    def fingerprint(self) -> str:
        """Returns a hash of ids, boxes and file sizes: another one means other descriptors."""
        digest = hashlib.sha256()
        for photo in self.photos:
            size = photo.path.stat().st_size if photo.path.is_file() else None
            digest.update(repr((photo.id, photo.box, size)).encode())
        return digest.hexdigest()


# --- finding the files ---------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    """Returns (name without photo suffix, photo suffix or "")."""
    suffix = pathlib.PurePosixPath(name).suffix
    return (name[: -len(suffix)], suffix) if suffix.lower() in SUFFIXES else (name, "")


class _Finder:
    """Finds photos by name, reading each folder once."""

    def __init__(self, root: pathlib.Path):
        self._root = root
        self._folders = {}

    def _folder(self, name: str) -> tuple[pathlib.Path, dict[str, list[str]]]:
        if name not in self._folders:
            folder = files.inside(self._root, name)
            stems = {}
            entries = os.scandir(folder) if folder.is_dir() else ()
            for entry in sorted(entry.name for entry in entries):
                stem, suffix = _split(entry)
                if suffix:
                    stems.setdefault(stem, []).append(entry)
            self._folders[name] = folder, stems
        return self._folders[name]

    def find(self, name: str, source) -> Photo:
        """Returns the photo that a file calls `name`, with or without suffix."""
        parts = pathlib.PurePosixPath(name)
        if not parts.name or parts.name == "..":
            raise InputError(f"{source}: {name!r} is no name of a photo")
        folder, stems = self._folder(str(parts.parent))
        id_, suffix = _split(str(parts))
        if suffix:
            return Photo(id_, folder / parts.name)
        found = stems.get(parts.name, [])
        if len(found) > 1:
            raise InputError(
                f"{source}: {name!r} may be {found[0]} or {found[1]} in {folder}; keep one of them"
            )
        return Photo(id_, folder / (found[0] if found else parts.name))


def _from_folder(folder: pathlib.Path, root: pathlib.Path) -> list[Photo]:
    photos, others = [], 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.startswith(".") or not _split(name)[1]:
                others += 1
                continue
            path = pathlib.Path(parent, name)
            if not path.is_relative_to(root):
                raise InputError(f"--images={folder} is not inside --image_root={root}")
            photos.append(Photo(_split(path.relative_to(root).as_posix())[0], path))
    if others:
        log.info("%s: %d other files (not jpg, jpeg or png) are left out", folder, others)
    return photos


def _from_csv(path: pathlib.Path, finder: _Finder) -> list[Photo]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name for name in ("path", "id") if name in (reader.fieldnames or ())]
            if not columns:
                raise InputError(f"{path}: no column path or id, it has {reader.fieldnames}")
            return [finder.find(row[columns[0]] or "", path) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV in UTF-8 ({error})") from error


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


def list_photos(settings: PhotosConfig) -> Listing:
    """Lists the photos of a folder (recursive, sorted), a CSV or a ground truth (in their order).

    A photo that a file names and that is not there is listed too: whoever reads it counts it.

    Raises:
      InputError: when there are none, two have one id, or a name leads out of the image root.
    """
    source = pathlib.Path(settings.images)
    is_truth = source.suffix in (".pkl", ".mat")
    if not source.exists():
        raise InputError(f"--images={source}: no such file or folder")
    if is_truth != bool(settings.subset):
        remedy = "needs --subset=query or index" if is_truth else "takes no --subset"
        raise InputError(f"--images={source} {remedy}")
    root = pathlib.Path(settings.image_root or (source if source.is_dir() else source.parent))
    if not root.is_dir():
        raise InputError(f"--image_root={root}: no such folder")
    crop = settings.subset == "query" and settings.crop_queries
    if source.is_dir():
        found = _from_folder(source, root)
    elif is_truth:
        found = _from_ground_truth(source, settings.subset, crop, _Finder(root))
    elif source.suffix == ".csv":
        found = _from_csv(source, _Finder(root))
    else:
        raise InputError(f"--images={source} is neither a folder, a .csv, a .pkl nor a .mat")
    if not found:
        raise InputError(f"--images={source}: no photos (jpg, jpeg, png) there")
    seen = {}
    for photo in found:
        other = seen.setdefault(photo.id, photo)
        if other is not photo:
            raise InputError(
                f"{source}: {photo.path} and {other.path} have one id, {photo.id!r}; keep one"
            )
    return Listing(root, tuple(found), crop)
