"""What belongs to Revisited Oxford/Paris and to R1M: which files, where they are had, which photos.

The addresses are those of https://github.com/filipradenovic/revisitop, python/download.py.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Collection

from dolg_tf.evaluation.revisited import archives as photo_archives
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What belongs to a data set, and where it can be had.

    Attributes:
      archives: their names; of Oxford and Paris the original photos', beside which there are those
        with blurred faces, whose names end in -v1.
      archives_at, lists_at: the addresses of their folders.
      lists: names of the ground truth's forms, or of the list of photos; one is needed.
      photos: how many there are.
      has_blurred: whether there are two variants.
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


def read_lists(about: Dataset, lists: dict[str, pathlib.Path]) -> list[str]:
    """Returns the photos' paths in the order of their list: index photos, then queries."""
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
                f"{path} names {len(set(names))} photos, there are {about.photos}; download it "
                "again"
            )
        if wanted not in (None, names):
            raise InputError(f"{path} names other photos than its other form; download both again")
        wanted = names
    return wanted


def say_absent(about: Dataset, there: Collection[str]) -> int:
    """Logs where the archives that are not there can be had; returns how many these are.

    Args:
      about: the data set.
      there: names of the archives that are.
    """
    absent = [name for name in about.archives if not set(there) & set(about.forms(name))]
    for name in absent:
        log.warning("not there: %s, from %s/%s", name, about.archives_at, about.forms(name)[-1])
    return len(absent)


def find(about: Dataset, downloads: pathlib.Path, folder: pathlib.Path) -> tuple[dict, dict]:
    """Returns the archives and the lists that are there, each {name: file}.

    Raises:
      InputError: when there is no list, or an archive in both variants.
    """
    forms = {form for archive in about.archives for form in about.forms(archive)}
    names = forms | set(about.lists)
    found = photo_archives.find_loose(downloads, names, folder.resolve())
    for archive in about.archives:
        both = [str(found[form]) for form in about.forms(archive) if form in found]
        if len(both) > 1:
            raise InputError(f"{both[0]} and {both[1]} are both there; keep one")
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
            f"--downloads={downloads}: no {' or '.join(about.lists)} there; get it from "
            f"{about.lists_at}/{about.lists[0]}"
        )
    return archives, lists
