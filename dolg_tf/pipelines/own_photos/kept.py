"""The folder of all that a search keeps: where it is, whose it is, and how it is forgotten."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import shutil
from typing import IO

from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

FORMAT_VERSION = 1
MARK = "dolg_search.json"  # tells a kept folder from others
_LOCK = "lock"
_HASH = 12  # digits of a hash in a folder's name


def roots_of(photos: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Returns the folders of photos by label; a single one has the label "".

    Args:
      photos: the folders, in any order; they need not exist.

    Raises:
      InputError: when one is inside another.
    """
    folders = sorted({pathlib.Path(os.path.realpath(folder)) for folder in photos})
    for one, other in itertools.pairwise(folders):
        if other.is_relative_to(one):
            raise InputError(f"{other} is inside {one}, which is searched anyway; name only {one}")
    if len(folders) == 1:
        return {"": folders[0]}
    roots = {}
    for folder in folders:
        name = folder.name or "root"
        label, number = name, 2
        while label in roots:
            label, number = f"{name}_{number}", number + 1
        roots[label] = folder
    return roots


def _default(roots: dict[str, pathlib.Path]) -> pathlib.Path:
    home = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local" / "share"
    paths = "\0".join(map(str, roots.values()))
    digest = hashlib.sha256(os.fsencode(paths)).hexdigest()[:_HASH]
    name = re.sub(r"[^\w.-]+", "_", next(iter(roots.values())).name).strip("._") or "photos"
    return pathlib.Path(home, "dolg_tf", "search", f"{name[:64]}-{digest}")


@dataclasses.dataclass(frozen=True)
class Kept:
    """The kept folder of some photos.

    Attributes:
      path: of the folder.
      roots: the folders of photos, by label.
    """

    path: pathlib.Path
    roots: dict[str, pathlib.Path]

    @classmethod
    def of(cls, settings: SearchConfig) -> "Kept":
        """Returns the kept folder that was asked for; nothing is written.

        Raises:
          InputError: when a folder of photos is inside another.
        """
        roots = roots_of(settings.photos)
        path = pathlib.Path(settings.folder) if settings.folder else _default(roots)
        return cls(path.absolute(), roots)

    @property
    def unreadable(self) -> pathlib.Path:
        """The list of photos that could not be read."""
        return self.path / "unreadable.csv"

    def described_by(self, model_hash: str) -> pathlib.Path:
        """Returns the folder of what one model has described."""
        return self.path / f"model-{model_hash[:_HASH]}"

    def open(self) -> IO:
        """Makes the folder, or makes sure that it is one of these photos, and locks it.

        Returns:
          What is to be closed when the work on the folder is done.

        Raises:
          InputError: when it holds something else, or another command is at work on it.
        """
        self._check()
        lock = self._lock()
        if not self._about():
            folders = {label: str(root) for label, root in self.roots.items()}
            files.write_json(
                self.path / MARK, {"format_version": FORMAT_VERSION, "photos": folders}
            )
        return lock

    def forget(self) -> bool:
        """Deletes the folder; returns whether there was one.

        Raises:
          InputError: when it is not such a folder, is a link or holds the photos, or another
            command is at work on it.
        """
        if not os.path.lexists(self.path):
            return False
        self._check()
        if not self._about():
            raise InputError(f"{self.path} was not made by `dolg search`, so it is not deleted")
        inside = [root for root in self.roots.values() if root.is_relative_to(self.path.resolve())]
        if inside:
            raise InputError(f"{self.path} holds the photos {inside[0]}, so it is not deleted")
        with self._lock():
            shutil.rmtree(self.path)
        return True

    def _lock(self) -> IO:
        taken = (
            f"another `dolg search` is at work in {self.path}; wait until it has described the "
            "photos, or stop it"
        )
        return files.lock(self.path / _LOCK, taken)

    def _about(self) -> dict:
        """Returns what the folder says of itself; {}: nothing."""
        mark = self.path / MARK
        if not os.path.lexists(mark):
            return {}
        try:
            return files.read_json(mark, FORMAT_VERSION)
        except InputError as error:
            raise InputError(f"{error}; or delete {self.path}") from error

    def _check(self) -> None:
        """Makes sure that the folder is one of these photos, or may become one."""
        for root in self.roots.values():
            if self.path.resolve() == root:
                raise InputError(
                    f"{self.path} is the folder of photos; keep what is made elsewhere"
                )
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise InputError(f"{self.path} is a link or a file; name another folder")
        about = self._about()
        folders = about.get("photos")
        if about and folders != {label: str(root) for label, root in self.roots.items()}:
            told = ", ".join(folders.values()) if isinstance(folders, dict) else "others"
            raise InputError(
                f"{self.path} keeps what was made of other photos ({told}); name another folder, "
                "or delete it with --forget and those photos"
            )
        if not about and self.path.is_dir() and any(map(_is_other, self.path.iterdir())):
            raise InputError(
                f"{self.path} holds other files; name a folder that is empty or not there yet"
            )


def _is_other(path: pathlib.Path) -> bool:
    """Whether a path in a folder without mark is not what a killed command left there."""
    return path.name != _LOCK and not workshop.holds(path.name)
