"""Downloads of Revisited Oxford/Paris and R1M -> the folders that extraction and scoring read.

    dolg prepare-revisited --dataset=roxford5k --downloads=downloads \\
        --output=datasets

`--downloads` holds the archives as their authors publish them, or unpacked photos, and the ground
truth. Nothing is downloaded; the address of each missing file is printed. The layout is that of the
benchmark's own code:

    datasets/roxford5k/gnd_roxford5k.pkl      (and .mat)
    datasets/roxford5k/jpg/all_souls_000013.jpg ...
    datasets/revisitop1m/revisitop1m.txt      (and .csv, which extraction reads)
    datasets/revisitop1m/jpg/...

and `prepared.json` beside it, with `missing.txt` when photos are missing.

Reference: https://github.com/filipradenovic/revisitop, python/download.py.
"""

import dataclasses
import itertools
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

from dolg_tf.evaluation.revisited import archives as photo_archives
from dolg_tf.evaluation.revisited import downloads as revisited_downloads
from dolg_tf.evaluation.revisited.downloads import DATASETS
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError, option
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_SUMMARY, _MISSING, _BUILDING = "prepared.json", "missing.txt", ".building"
_UNPACKED = "unpacked"  # among the sources in prepared.json: photos that were in no archive
_NOT_IN_ARCHIVES = (
    f"no archive holds them, or they were deleted: then delete {_SUMMARY}, so that the archives "
    "are unpacked again"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Which data set is laid out, from which downloads, and where."""

    dataset: str = option("the data set", choices=tuple(DATASETS))
    downloads: str = option("folder of its archives or unpacked photos, and of its ground truth")
    output: str = option("folder to write; the data set becomes a folder of its name in it")
    variant: str = option(
        "variant of the photos of Oxford and Paris: archives named -v1 hold blurred faces; auto: "
        "by the names of the archives, unknown for unpacked photos",
        "auto",
        choices=("auto", "original", "blurred"),
    )

    def __post_init__(self):
        if self.variant != "auto" and not DATASETS[self.dataset].has_blurred:
            raise InputError(f"--variant={self.variant}: {self.dataset} has only one variant")


# --- putting it in place -------------------------------------------------------------


class _Target:
    """The folder of a data set: its photos, and prepared.json."""

    def __init__(self, settings: PrepareConfig, wanted: list[str]):
        self.folder = pathlib.Path(settings.output) / settings.dataset
        self.photos = self.folder / "jpg"
        self.wanted = wanted
        self._settings, self._about = settings, DATASETS[settings.dataset]
        self._sources, path = {}, self.folder / _SUMMARY
        if path.exists():
            self._sources = files.read_json(path, FORMAT_VERSION)["sources"]
        for source, about in self._sources.items():
            about["variant"] = self._variant_of(source, about["variant"])

    def _variant_of(self, source: str, known: str | None = None) -> str | None:
        if not self._about.has_blurred:
            return None
        if "-v1" in source:
            if self._settings.variant == "original":
                raise InputError(f"--variant=original contradicts the name of {source}")
            return "blurred"
        if self._settings.variant != "auto":
            return self._settings.variant
        return known or ("unknown" if source == _UNPACKED else "original")

    def missing(self) -> list[str]:
        """Returns the listed photos that are not in place."""
        there, start = set(), len(str(self.photos)) + 1
        for parent, _, names in os.walk(self.photos):
            inner = f"{parent[start:]}/" if parent[start:] else ""
            there.update(inner + name for name in names)
        return [name for name in self.wanted if name not in there]

    def is_done(self, source: str, stamp: list[int]) -> bool:
        """Tells whether all photos of an archive are in place.

        Raises:
          InputError: when photos of its other variant are in place.
        """
        for other in self._sources:
            if other != source and any(
                {source, other} <= set(self._about.forms(archive))
                for archive in self._about.archives
            ):
                raise InputError(
                    f"{self.folder} holds photos of {other}, not {source}; delete it, or choose "
                    "another --output"
                )
        return self._sources.get(source, {}).get("stamp") == stamp

    def note(self, source: str, stamp: list[int] | None = None) -> None:
        """Records that photos of a source are in place; with a stamp, that all of them are."""
        self._sources[source] = {"variant": self._variant_of(source), "stamp": stamp}
        self.summarise()

    def summarise(self) -> dict:
        """Writes prepared.json, and missing.txt when photos are missing; returns the former."""
        missing = self.missing()
        variants = {about["variant"] for about in self._sources.values()}
        if len(variants) > 1:
            variants = {"mixed"} if "blurred" in variants else {"unknown"}
        summary = {
            "format_version": FORMAT_VERSION,
            "dataset": self._settings.dataset,
            "variant": variants.pop() if variants else None,
            "photos": len(self.wanted) - len(missing),
            "missing": len(missing),
            "sources": self._sources,
        }
        path = self.folder / _MISSING
        if missing:
            files.write_text(path, "".join(f"{name}\n" for name in missing))
        else:
            path.unlink(missing_ok=True)
        files.write_json(self.folder / _SUMMARY, summary)
        return summary


def _unpack(target: _Target, archives: dict, building: pathlib.Path) -> Iterator[str]:
    """Unpacks the archives that are not in place yet; yields the name of each photo."""
    wanted = set(target.wanted)
    for name, path in archives.items():
        about = path.stat()
        stamp = [about.st_size, about.st_mtime_ns]
        if target.is_done(name, stamp):
            continue
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
        building.mkdir()
        found = {}
        for photo, unpacked in photo_archives.unpack(path, wanted, building):
            found[photo] = unpacked
            yield photo
        for photo, unpacked in found.items():
            place = files.inside(target.photos, photo)
            place.parent.mkdir(parents=True, exist_ok=True)
            unpacked.replace(place)
        target.note(name, stamp)
        log.info("%s: %d photos", path, len(found))


def _place_loose(target: _Target, downloads: pathlib.Path) -> Iterator[str]:
    """Puts unpacked photos where archives left gaps; yields the name of each photo."""
    missing = set(target.missing())
    if not missing:
        return
    loose = photo_archives.find_loose(downloads, missing, target.folder.resolve())
    if loose:
        target.note(_UNPACKED)
    for name, path in loose.items():
        photo_archives.place(path, files.inside(target.photos, name))
        yield name


def _write_lists(target: _Target, lists: dict[str, pathlib.Path]) -> None:
    """Puts the lists beside the photos; R1M's also as a CSV, which extraction reads."""
    for name, path in lists.items():
        if path != target.folder / name:
            with files.atomic_path(target.folder / name) as temporary:
                shutil.copyfile(path, temporary)
        if path.suffix == ".txt":
            table = (target.folder / name).with_suffix(".csv")
            write_table(table, ["path"], ([photo] for photo in target.wanted))


def prepare(settings: PrepareConfig) -> dict:
    """Lays out a revisited data set from its downloaded archives or unpacked photos.

    The names are checked against the ground truth. Missing photos are listed in missing.txt,
    prepared.json tells whether faces are blurred, and the addresses of missing files are printed.
    When more archives are there, or after an interruption, the same command continues with the next
    archive; archives that are done need not be kept.

    Returns:
      The contents of prepared.json.

    Raises:
      InputError: when an archive or a list is damaged, or photos are missing in the end.
    """
    about, downloads = DATASETS[settings.dataset], pathlib.Path(settings.downloads)
    folder = pathlib.Path(settings.output) / settings.dataset
    if not downloads.is_dir():
        raise InputError(f"--downloads={downloads}: no such folder")
    archives, lists = revisited_downloads.find(about, downloads, folder)
    wanted = revisited_downloads.read_lists(about, lists)
    building = folder / _BUILDING
    taken = f"another process is preparing {folder}; wait for it, or choose another --output"
    with files.lock(building / "lock", taken):
        target = _Target(settings, wanted)
        _write_lists(target, lists)
        missing, unpacked = set(target.missing()), building / "photos"
        try:
            todo = itertools.chain(
                _unpack(target, archives, unpacked), _place_loose(target, downloads)
            )
            new = (name for name in todo if name in missing)
            for _ in progress.track(new, len(missing), "prepare"):
                pass
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        summary = target.summarise()
        shutil.rmtree(building)
    _report(settings, summary, archives)
    return summary


def _report(settings: PrepareConfig, summary: dict, archives: dict) -> None:
    """Logs the outcome; raises when photos are missing."""
    about, folder = DATASETS[settings.dataset], pathlib.Path(settings.output) / settings.dataset
    variant = f", {summary['variant']}" if about.has_blurred else ""
    log.info("%s: %d of %d photos%s", folder, summary["photos"], about.photos, variant)
    if not summary["missing"]:
        return
    known = {*archives, *(name for name, of in summary["sources"].items() if of["stamp"])}
    absent = revisited_downloads.say_absent(about, known)
    first = (folder / _MISSING).read_text(encoding="utf-8").splitlines()[0]
    raise InputError(
        f"{summary['missing']} of {about.photos} photos are missing, the first is {first}, "
        f"{folder / _MISSING} lists them all; "
        + (f"get the {absent} archives above" if absent else _NOT_IN_ARCHIVES)
    )
