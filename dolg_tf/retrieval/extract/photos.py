"""Which photos are described: folder, CSV, ground truth or TFRecords become (id, file, box)."""

import dataclasses
import glob
import logging
import os
import pathlib
import posixpath

from dolg_tf.data.photo_ids import SUFFIXES, check_name, id_of, split_suffix
from dolg_tf.data.records.lists import csv_rows
from dolg_tf.retrieval.extract.listing import Listing, Photo
from dolg_tf.retrieval.extract.photo_records import list_records
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """The photos of a descriptor set, and where it goes."""

    images: str = option(
        "folder of photos, CSV with a column path or id, gnd_*.pkl or .mat, or a pattern of "
        "TFRecords of DELG's schema"
    )
    image_root: str = option(
        "folder that the ids are relative to; empty: the folder itself, or that of the file", ""
    )
    subset: str = option(
        "query or index: which photos of a ground truth, which needs it; empty for all else", ""
    )
    output: str = option("descriptor set (a directory) to write")
    crop_queries: bool = option("cut the queries of a ground truth to their boxes", True)
    max_side: int = option("shrink photos to this longest side; 0: never", 0, unit="pixels")
    batch_size: int = option("photos of equal size described at once", 16, unit="photos")
    max_bad: int = option("unreadable photos that are tolerated, and listed", 0, unit="photos")

    def __post_init__(self):
        if self.subset not in ("", "query", "index"):
            raise InputError(f"--subset={self.subset} must be query or index")
        at_least(self, max_side=0, batch_size=1, max_bad=0)


# --- finding the files ---------------------------------------------------------------


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
        """Returns the photos of a folder by their stems; "/" is between several of one."""
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            # Not Path.iterdir, which makes a million Path objects.
            names = os.listdir(folder) if pathlib.Path(folder).is_dir() else ()  # noqa: PTH208
            for name in names:
                stem, suffix = split_suffix(name)
                if suffix:
                    stems[stem] = f"{stems[stem]}/{name}" if stem in stems else name
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
                f"{where}: {name!r} may be {several[0]} or {several[1]} in {folder}; keep one of "
                "them"
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
        log.info("%s: %d other files (not jpg, jpeg or png) are left out", folder, others)
    if links:
        log.warning("%s: %d links to folders are not followed", folder, links)
    return photos


def _from_csv(path: pathlib.Path, finder: _Finder) -> list[Photo]:
    return [finder.find(name, where) for where, (name,) in csv_rows(str(path), ["path", "id"])]


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
                f"{source}: {photo.where} and {photos[other].where} have one id, {photo.id!r}; "
                "keep one"
            )


def list_photos(settings: PhotosConfig) -> Listing:
    """Lists the photos of a folder (recursive, sorted), a CSV, a ground truth or TFRecords.

    Those of files are in the files' order. A photo that a file names and that is not there is
    listed too: whoever reads it counts it.

    Raises:
      InputError: when there are none, two have one id, or a name leads out of the image root.
    """
    source = pathlib.Path(settings.images)
    is_truth = source.suffix in (".pkl", ".mat")
    pattern = not source.exists() and glob.has_magic(settings.images)
    if not source.exists() and not pattern:
        raise InputError(f"--images={source}: no such file or folder")
    if is_truth != bool(settings.subset):
        remedy = "needs --subset=query or index" if is_truth else "takes no --subset"
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
        raise InputError(
            f"--images={source} is neither a folder, a .csv, a .pkl, a .mat nor TFRecords"
        )
    else:
        found = [
            Photo(id_, file, None, start, size)
            for id_, file, start, size in list_records(settings.images)
        ]
    if not found:
        raise InputError(f"--images={source}: no photos (jpg, jpeg, png) there")
    _check_ids(found, source)
    return Listing(root, tuple(found), crop)
