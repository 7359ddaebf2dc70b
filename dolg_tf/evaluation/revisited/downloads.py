"""The downloads of Revisited Oxford/Paris and R1M: their files, addresses and photos.

The addresses are those of https://github.com/filipradenovic/revisitop, python/download.py.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from dolg_tf.evaluation.revisited import archives as photo_archives
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The files of a data set, and where to get them.

    Attributes:
      archives: their names; for Oxford and Paris those of the original photos. Archives with
        blurred faces exist beside them, with names that end in -v1.
      archives_at, lists_at: the addresses of their folders.
      lists: names of the forms of the ground truth, or of the list of photos; one is needed.
      photos: how many there are.
      has_blurred: whether both variants exist.
    """

    archives: tuple[str, ...]
    archives_at: str
    lists: tuple[str, ...]
    lists_at: str
    photos: int
    has_blurred: bool = True

    def forms(self, archive: str) -> tuple[str, ...]:
        """Returns the names that an archive may have."""
        return (archive, archive.replace(".tgz", "-v1.tgz")) if self.has_blurred else (archive,)


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_TRUTHS = "http://cmp.felk.cvut.cz/revisitop/data/datasets"
_R1M = "http://ptak.felk.cvut.cz/revisitop/revisitop1m"
DATASETS = {
    "roxford5k": Dataset(
        ("oxbuild_images.tgz",),
        f"{_VGG}/oxbuildings",
        ("gnd_roxford5k.pkl", "gnd_roxford5k.mat"),
        f"{_TRUTHS}/roxford5k",
        4993 + 70,
    ),
    "rparis6k": Dataset(
        ("paris_1.tgz", "paris_2.tgz"),
        f"{_VGG}/parisbuildings",
        ("gnd_rparis6k.pkl", "gnd_rparis6k.mat"),
        f"{_TRUTHS}/rparis6k",
        6322 + 70,
    ),
    "revisitop1m": Dataset(
        tuple(f"revisitop1m.{number}.tar.gz" for number in range(1, 101)),
        f"{_R1M}/jpg",
        ("revisitop1m.txt",),
        _R1M,
        1_001_001,
        has_blurred=False,
    ),
}


class Downloads(NamedTuple):
    """The downloaded files of a data set, each by its name."""

    archives: dict[str, pathlib.Path]
    lists: dict[str, pathlib.Path]


def read_lists(about: Dataset, lists: dict[str, pathlib.Path]) -> list[str]:
    """Returns the paths of the photos in the order of their list: index photos, then queries."""
    wanted = None
    for path in lists.values():
        if path.suffix == ".txt":
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: not UTF-8 ({error}); download it again") from error
            names = [line.strip() for line in lines if line.strip()]
        else:
            truth = load_ground_truth(path)
            names = [f"{id_}.jpg" for id_ in (*truth.index_ids, *truth.query_ids)]
        if len(names) != about.photos or len(set(names)) != about.photos:
            raise InputError(
                f"{path} names {len(set(names))} photos instead of {about.photos}; download it "
                "again"
            )
        if wanted not in (None, names):
            raise InputError(f"{path} names other photos than its other form; download both again")
        wanted = names
    return wanted


def say_absent(about: Dataset, there: Collection[str]) -> int:
    """Logs where to get the missing archives; returns how many are missing.

    Args:
      about: the data set.
      there: names of the archives that are there.
    """
    absent = [name for name in about.archives if not set(there) & set(about.forms(name))]
    for name in absent:
        log.warning(
            "missing: %s, get it from %s/%s", name, about.archives_at, about.forms(name)[-1]
        )
    return len(absent)


def find(about: Dataset, downloads: pathlib.Path, folder: pathlib.Path) -> Downloads:
    """Finds the archives and the lists that are there.

    Args:
      about: the data set.
      downloads: folder to look in.
      folder: of the data set, where lists may be from an earlier run.

    Raises:
      InputError: when there is no list, or both variants of an archive.
    """
    forms = {form for archive in about.archives for form in about.forms(archive)}
    names = forms | set(about.lists)
    found = photo_archives.find_loose(downloads, names, folder.resolve())
    for archive in about.archives:
        both = [str(found[form]) for form in about.forms(archive) if form in found]
        if len(both) > 1:
            raise InputError(f"{both[0]} and {both[1]} are two variants of one archive; keep one")
    archives = {
        name: found[name]
        for archive in about.archives
        for name in about.forms(archive)
        if name in found
    }
    lists = {}
    for name in about.lists:
        kept = folder / name
        if name in found or kept.exists():
            lists[name] = found.get(name, kept)
    if not lists:
        say_absent(about, archives)
        raise InputError(
            f"--downloads={downloads} holds no {' or '.join(about.lists)}; get it from "
            f"{about.lists_at}/{about.lists[0]}"
        )
    return Downloads(archives, lists)
