"""Which photos there are, and which file is a photo that is known already."""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import stat

from dolg_tf.data import photo_folders
from dolg_tf.pipelines.own_photos.kept import MARK
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_THREADS = 16  # each call takes milliseconds on a network disk


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A photo on disk.

    Attributes:
      id: its path relative to its folder, with suffix, behind the folder's label if there are
        several.
      path: where it is.
      size: in bytes; -1: it is gone, or cannot be asked for.
      modified: time in nanoseconds.
    """

    id: str
    path: str
    size: int
    modified: int

    @property
    def state(self) -> tuple[int, int]:
        """What changes whenever the file is written."""
        return self.size, self.modified


@dataclasses.dataclass(frozen=True)
class Found:
    """The photos of some folders.

    Attributes:
      photos: in the order of their ids.
      faults: (path, reason) of folders that cannot be read.
    """

    photos: tuple[File, ...]
    faults: tuple[tuple[str, str], ...]


def find(roots: dict[str, pathlib.Path], kept: pathlib.Path) -> Found:
    """Finds the photos below some folders by their content.

    Hidden folders are passed over, and so are kept folders, also of other searches.

    Args:
      roots: the folders, by label.
      kept: folder that is not searched.

    Raises:
      InputError: when a folder is missing or has no photos: of several, one that is not mounted
        would pass for one whose photos were deleted.
    """
    named, faults, words = [], [], []
    for label, root in roots.items():
        if not root.is_dir():
            raise InputError(f"{root} is {'not a folder' if root.exists() else 'not there'}")
        walk = photo_folders.Walk(root, {str(kept.resolve())}, faults, MARK)
        found = list(walk.named(f"{label}/" if label else ""))
        if not found:
            raise InputError(f"{root}: no photos there{f'; {faults[-1][1]}' if faults else ''}")
        named += found
        words += _passed_over(walk)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        photos = sorted(pool.map(_file, named, chunksize=1024), key=lambda photo: photo.id)
    folders = ", ".join(map(str, roots.values()))
    told = f"; passed over are {', '.join(words)}" if words else ""
    log.info("%s: %d photos%s", folders, len(photos), told)
    return Found(tuple(photos), tuple(faults))


def _passed_over(walk: photo_folders.Walk) -> list[str]:
    """Returns what was passed over in a folder, in words."""
    counts = {
        "other files": walk.others,
        "camera raws, to be developed to JPEGs": walk.raws,
        "hidden files and folders": walk.hidden,
        "links to folders": walk.links,
    }
    return [f"{words}: {count}" for words, count in counts.items() if count]


def _file(named: tuple[str, str]) -> File:
    id_, path = named
    try:
        about = os.stat(path)  # noqa: PTH116 - for a million files
        if stat.S_ISREG(about.st_mode):
            return File(id_, path, about.st_size, about.st_mtime_ns)
    except OSError:
        pass
    return File(id_, path, -1, 0)
