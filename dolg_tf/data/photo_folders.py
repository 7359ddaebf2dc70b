"""Photos in folders: which files are photos, and which photo has which id.

An id leads back to its file: it is the path without suffix, unless another file of the folder has
the same name but for it. Such photos keep their suffixes in their ids.
"""

import collections
import contextlib
import logging
import os
import pathlib
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping

from dolg_tf.data import photo_files
from dolg_tf.data.photo_ids import SUFFIXES, check_name, id_of, split_suffix
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

# Suffixes that tell what a file is. Others are told by their first bytes.
_NAMES = "jpe jfif webp gif bmp avif heic heif tif tiff"
_PHOTOS = frozenset((*SUFFIXES, *(f".{name}" for name in _NAMES.split())))
# Most begin as a TIFF does, and would be described as its small preview.
_RAW_NAMES = (
    "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl "
    "sr2 srf srw x3f"
)
_RAWS = frozenset(f".{name}" for name in _RAW_NAMES.split())
# Not opened: of a folder of phone photos, every second file may be a sidecar or a film.
_OTHER_NAMES = (
    "aae avi bin csv db doc docx gz htm html ini json log lrv m4a m4v mat md mkv mov mp3 mp4 npy "
    "npz pdf pickle pkl py svg tar tfrecord thm txt wav xml xmp yaml yml zip"
)
_OTHERS = _RAWS | frozenset(f".{name}" for name in _OTHER_NAMES.split())
_HEAD = 64  # bytes that tell a photo's format
_NO_FILES = contextlib.nullcontext(())


def _suffix(name: str) -> str:
    return name[name.rfind(".") :].lower()  # splitext takes longer than asking the system


def is_photo(path: str, name: str) -> bool:
    """Tells whether an existing path is a photo, or was meant to be one."""
    suffix = _suffix(name)
    if suffix in _OTHERS:
        return False
    try:
        # A pipe would be waited for, and a device may do anything when it is opened.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - for a million files
            return False
        if suffix in _PHOTOS:
            return True
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return photo_files.sniff(os.read(opened, _HEAD)) is not None
        finally:
            os.close(opened)
    except FileNotFoundError:  # a link that leads nowhere
        return suffix in _PHOTOS
    except OSError:
        return False


def _is_folder(entry: os.DirEntry) -> bool:
    """Tells whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look
        return False


# --- all photos of a folder --------------------------------------------------------------


class Walk:
    """The photos below a folder, those of a folder before those of its folders.

    Args:
      folder: the folder.
      without: paths of folders that are passed over.
      faults: is given (path, reason) of each folder that cannot be read; None: that is an error.
      mark: a folder below with a file of this name is passed over; empty: none is.

    Attributes:
      others, raws, hidden, links: files that are no photos, camera raws, hidden files and folders,
        and links to folders that were passed over.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        without: Collection[str] = (),
        faults: list[tuple[str, str]] | None = None,
        mark: str = "",
    ):
        self._folder, self._without, self._faults = str(folder), without, faults
        self._mark = mark
        self.others = self.raws = self.hidden = self.links = 0
        self.shared = []  # photos that keep their suffixes, as their ids would be the same

    def photos(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yields id and file of each photo.

        Args:
          prefix: what ids of photos in the folder itself begin with.
        """
        for found in self._folders(prefix):
            yield from self._of_folder(*found)

    def named(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yields name and file of each photo; a name is an id with suffix."""
        for folder, start, names, _ in self._folders(prefix):
            for name in names:
                yield f"{start}{name}", f"{folder}/{name}"

    def _folders(self, prefix: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
        """Yields path, prefix, photos and other files of each folder."""
        todo = [(self._folder, prefix)]
        while todo:
            folder, prefix = todo.pop()
            try:
                names, folders, others = self._scan(folder)
            except OSError as error:
                if self._faults is None:
                    raise
                self._faults.append((folder, error.strerror))
                continue
            if self._mark in others and folder != self._folder:
                continue
            yield folder, prefix, names, others
            below = [(f"{folder}/{name}", f"{prefix}{name}/") for name in reversed(folders)]
            todo += [one for one in below if one[0] not in self._without]

    def _scan(self, folder: str) -> tuple[list[str], list[str], list[str]]:
        """Returns the names of the photos, folders and other files in a folder, sorted."""
        names, folders, others = [], [], []
        with os.scandir(folder) as entries:  # not Path.iterdir, which makes a million paths
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    self.hidden += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif _is_folder(entry):
                    self.links += 1
                # What the system says of the entry saves asking it once more for each photo.
                elif (
                    entry.is_file(follow_symlinks=False) and _suffix(name) in _PHOTOS
                ) or is_photo(entry.path, name):
                    names.append(name)
                else:
                    others.append(name)
        raws = sum(_suffix(name) in _RAWS for name in others)
        self.raws += raws
        self.others += len(others) - raws
        return sorted(names), sorted(folders), others

    def _of_folder(
        self, folder: str, prefix: str, names: list[str], others: list[str]
    ) -> Iterator[tuple[str, str]]:
        ids = [split_suffix(name)[0] for name in names]
        taken = {split_suffix(name)[0] for name in others}
        if len(set(ids)) < len(ids) or not taken.isdisjoint(ids):
            count = collections.Counter(ids)
            for place, name in enumerate(names):
                if count[ids[place]] > 1 or ids[place] in taken:
                    ids[place] = name
                    self.shared.append(f"{prefix}{name}")
        for id_, name in zip(ids, names, strict=True):
            yield f"{prefix}{id_}", f"{folder}/{name}"


def photos_below(folder: pathlib.Path, root: pathlib.Path) -> list[tuple[str, str]]:
    """Returns id and file of each photo in a folder and below it, in order.

    Hidden files and folders are passed over, as are links to folders, camera raws and whatever is
    not a photo.

    Args:
      folder: inside `root`.
      root: what ids are relative to.

    Raises:
      OSError: when a folder cannot be read.
    """
    inside = folder.relative_to(root).as_posix()
    walk = Walk(folder)
    found = list(walk.photos("" if inside == "." else f"{inside}/"))
    if walk.others:
        log.info("%s: %d other files (not photos) are ignored", folder, walk.others)
    if walk.raws:
        log.warning(
            "%s: %d camera raws are ignored; develop them to JPEGs to have them described",
            *(folder, walk.raws),
        )
    if walk.hidden:
        log.info("%s: %d hidden files and folders are passed over", folder, walk.hidden)
    if walk.links:
        log.warning("%s: %d links to folders are not followed", folder, walk.links)
    if walk.shared:
        log.warning(
            "%s: %d photos have the name of another file but for the suffix, such as %s; their ids "
            "keep it",
            *(folder, len(walk.shared), " and ".join(walk.shared[:2])),
        )
    return found


# --- single photos -----------------------------------------------------------------------


class Finder:
    """Finds photos by name, reading each folder once.

    Args:
      root: what names are relative to; of several folders, by the label with which names begin.
    """

    def __init__(self, root: files.Path | Mapping[str, files.Path]):
        self._roots = root if isinstance(root, Mapping) else {"": root}
        self._folders, self._named = {}, {}

    def _folder(self, name: str) -> str:
        """Returns the path of a folder.

        Raises:
          InputError: when the name leads out of its root, or begins with no label.
        """
        if name not in self._folders:
            label, rest = ("", name) if "" in self._roots else name.partition("/")[::2]
            if label not in self._roots:
                known = ", ".join(self._roots)
                raise InputError(f"{name!r} is in none of the folders {known}")
            self._folders[name] = str(files.inside(self._roots[label], rest))
        return self._folders[name]

    def _names(self, folder: str, id_: str) -> list[str]:
        """Returns the files of a folder that have an id if they are without suffix."""
        if folder not in self._named:
            named = {}
            with os.scandir(folder) if pathlib.Path(folder).is_dir() else _NO_FILES as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        id_here = split_suffix(entry.name)[0]
                        # Names are joined: lists for a million photos would take far more memory.
                        first = named.get(id_here)
                        named[id_here] = f"{first}/{entry.name}" if first else entry.name
            self._named[folder] = named
        names = self._named[folder].get(id_, "")
        return sorted(names.split("/")) if names else []

    def find(self, name: str, where) -> tuple[str, str]:
        """Returns id and file of the photo that a list calls `name`, with or without suffix.

        A file of exactly that name comes first. A photo need not exist.

        Raises:
          InputError: when the name leads out of the root, or may be one of several photos.
        """
        check_name(name, where)
        parent, last = posixpath.split(posixpath.normpath(name))
        folder, prefix = self._folder(parent), f"{parent}/" if parent else ""
        id_ = split_suffix(last)[0]
        names = self._names(folder, id_)
        if last in names or (last != id_ and not self._doubled(folder, last)):
            return f"{prefix}{id_ if len(names) < 2 else last}", f"{folder}/{last}"
        names = names if last == id_ and names else self._doubled(folder, last)
        if len(names) > 1:
            raise InputError(
                f"{where}: {name!r} may be {names[0]} or {names[1]} in {folder}; keep only one, or "
                "name it with its suffix"
            )
        found = names[0] if names else last
        return f"{prefix}{id_of(found)}", f"{folder}/{found}"

    def _doubled(self, folder: str, name: str) -> list[str]:
        """Returns the photos with a suffix behind that of a name, which older sets cut off."""
        return [found for end in SUFFIXES for found in self._names(folder, f"{name}{end}")]
