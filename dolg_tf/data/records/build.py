"""GLDv2's lists or your own CSV, and photo files or tars -> TFRecords of DELG's schema.

    dolg records --images_dir=train --train_csv=train.csv \
        --train_clean_csv=train_clean.csv --output_dir=records

What happens to odd photos (records.json counts each kind, odd_photos.tsv lists them all):

  missing       no such file, or in none of the tars: left out
  corrupt       cannot be decoded, ends too early, or is not a file: left out
  unsupported   a lossless JPEG, or of pixels that cannot become 8 bits: left out
  too_large     of more pixels than --max_pixels, or a JPEG of more than 32 scans: left out
  crashed       killed the process that read it, in the run before: left out
  non_jpeg      a PNG, WebP, ... whatever its name says: re-encoded as RGB JPEG, quality 95
  grey, cmyk    a JPEG that is not RGB: re-encoded likewise
  exif_rotated  with --upright turned and re-encoded likewise, else kept as stored

All other photos keep their bytes. A landmark's only photo is used for training. `--strict` stops at
a photo that would be left out; finished record files are kept. A disk that cannot be read always
stops the build.
"""

import collections
import dataclasses
import hashlib
import logging
import pathlib
import shutil

import numpy as np

from dolg_tf.data import photo_files
from dolg_tf.data.records import classes, shards, tars, tfrecord
from dolg_tf.data.records.label_lists import ListsConfig, PhotoTable, read_photos
from dolg_tf.data.records.shards import Rule, Shard
from dolg_tf.stage import config, files, progress
from dolg_tf.stage.config import InputError, option
from dolg_tf.stage.processes import ProcessDied, process_count, run_in_processes

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
_SUMMARY = "records.json"  # written last: a folder that has it is complete
_ODD = "odd_photos.tsv"
_AGAIN = ("upright", "max_pixels", "num_shards", "validation_fraction", "seed")  # that are flags
_BUILDING = ".building"  # finished record files wait here for the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordsConfig(ListsConfig):
    """Options of the records: photos, labels, and how they are split."""

    md5_dir: str = option(
        "folder with GLDv2's md5.images_000.txt and so on, to check each tar; empty: no check", ""
    )
    output_dir: str = option("folder to write the records to")
    num_shards: int = option("record files per split", 128, unit="files")
    validation_fraction: float = option(
        "fraction of each landmark's photos kept for validation; a single photo is used for "
        "training",
        0.2,
    )
    seed: int = option("random seed of the split and the order", 0)
    processes: int = option("worker processes; 0: one per core", 0)
    strict: bool = option(
        "stop at the first photo that would be left out; photos that are re-encoded (not JPEG, "
        "grey, CMYK) or that EXIF rotates are kept and listed either way",
        False,
    )
    upright: bool | None = option(
        "turn photos by their EXIF orientation; unset: those of --labels_csv are turned, GLDv2's "
        "are not",
        None,
    )
    max_pixels: int = option(
        "photos of more are left out; 0: none is", photo_files.MAX_PIXELS, unit="pixels"
    )

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.num_shards <= 99999:
            raise InputError(f"--num_shards={self.num_shards} must be 1 to 99999")
        if not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"--validation_fraction={self.validation_fraction} must be at least 0 and below 1"
            )
        config.at_least(self, processes=0, max_pixels=0)

    @property
    def rule(self) -> Rule:
        """What becomes of photos."""
        upright = bool(self.labels_csv) if self.upright is None else self.upright
        return Rule(upright, self.max_pixels, self.strict)

    @property
    def in_tars(self) -> bool:
        """Whether the photos lie in GLDv2's tars."""
        return not self.labels_csv and bool(tars.find_tars(self.images_dir))


def split_photos(labels: np.ndarray, validation_fraction: float, seed: int) -> dict:
    """Splits photos at random, landmark by landmark.

    Args:
      labels: int (N,), ascending.
      validation_fraction: fraction of each landmark's photos, rounded; at least one photo is left
        for training.
      seed: of the choice and the order.

    Returns:
      {"train": numbers, "validation": numbers}, int64 and shuffled; each photo is in one of them.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]  # each landmark in random order
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.minimum(np.floor(counts * validation_fraction + 0.5), counts - 1)
    validation = np.zeros(len(labels), bool)
    validation[grouped[place < held[labels]]] = True
    return {"train": order[~validation[order]], "validation": order[validation[order]]}


# --- plan ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Planned:
    """One record file: where it is written, and the numbers of its photos."""

    path: pathlib.Path
    numbers: np.ndarray

    @property
    def note(self) -> pathlib.Path:
        """What happened to its photos; the file is finished once this exists."""
        return pathlib.Path(f"{self.path}.json")


def _plan(settings: RecordsConfig, labels: np.ndarray, building: pathlib.Path) -> list[_Planned]:
    plan = []
    splits = split_photos(labels, settings.validation_fraction, settings.seed)
    for split, numbers in splits.items():
        count = min(settings.num_shards, len(numbers))  # no empty files
        for shard in range(count):
            name = tfrecord.shard_name(split, shard, count)
            plan.append(_Planned(building / name, numbers[shard::count]))
    return plan


def _identity(settings: RecordsConfig, photos: PhotoTable, landmarks: list) -> dict:
    """Returns what must be equal for a rerun to continue: the options and the listed photos."""
    free = ("output_dir", "processes", "strict", "md5_dir")
    options = {k: v for k, v in config.to_dict(settings).items() if k not in free}
    options["upright"] = settings.rule.upright
    names = hashlib.sha256("\n".join(map(str, landmarks)).encode()).hexdigest()
    return {**options, "photos_sha256": photos.sha256(), "landmarks_sha256": names}


def _finished(output: pathlib.Path, identity: dict, name: str = _SUMMARY) -> dict | None:
    """Returns the summary of a finished folder, or None if it is not finished.

    Raises:
      InputError: when the folder holds records of another configuration.
    """
    path = output / name
    if not path.exists():
        return None
    found = files.read_json(path, FORMAT_VERSION)
    # Records from before these options were made like this.
    before = {"upright": False, "max_pixels": photo_files.MAX_PIXELS} | found["configuration"]
    changed = sorted(key for key in identity if before.get(key) != identity[key])
    if changed:
        told = ", ".join(f"{key} was {before.get(key)!r}" for key in changed)
        give = config.flags_of(before, changed) if set(changed) <= set(_AGAIN) else ""
        raise InputError(
            f"{output} holds records of another configuration ({told}); delete that folder or "
            f"choose another{give and f', or give {give}'}"
        )
    return found


# --- building -----------------------------------------------------------------------------


def _start(output: pathlib.Path, building: pathlib.Path, identity: dict) -> None:
    """Notes what is built here, and clears away what a killed run left unfinished.

    Raises:
      InputError: when the folder holds records of another configuration, or records from elsewhere.
    """
    if _finished(output, identity, f"{_BUILDING}/configuration.json") is None:
        foreign = sorted(
            path for split in ("train", "validation") for path in output.glob(f"{split}-*")
        )
        if foreign:
            shutil.rmtree(building)
            raise InputError(f"{foreign[0]} is in the way; delete that folder or choose another")
        value = {"format_version": FORMAT_VERSION, "configuration": identity}
        files.write_json(building / "configuration.json", value)
    for half in [*building.glob(".*"), *building.glob("tars/.*")]:
        shutil.rmtree(half, ignore_errors=True)


def _note_crashes(missing: list[_Planned]) -> list[str]:
    """Notes the photos that killed a process, so that the next run passes over them.

    Returns:
      These photos, and how the process died: "a/b (Segmentation fault)".
    """
    found = []
    for shard in (Shard(planned.path, ()) for planned in missing):
        name, how = shards.read_crash_note(shard.at_hand)
        if how:
            with shard.crashed.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            shard.at_hand.unlink()
            found.append(f"{name} ({how})")
    return found


def _write(plan: list[_Planned], photos: PhotoTable, settings: RecordsConfig) -> None:
    """Writes the record files that do not exist yet."""
    missing = [planned for planned in plan if not planned.note.exists()]
    if len(missing) < len(plan):
        log.info("%d of %d record files are kept", len(plan) - len(missing), len(plan))
    for crash in _note_crashes(missing):  # of this process itself, where it works alone
        log.warning("left out, because the last run died at it: %s", crash)
    # A file's photos are gathered when its turn comes: only a few files' are in memory at a time.
    tasks = (
        Shard(planned.path, photos.take(planned.numbers), settings.rule) for planned in missing
    )
    processes = process_count(settings.processes, len(missing))
    written = run_in_processes(shards.write_shard, tasks, processes)
    try:
        for _ in progress.track(written, len(missing), "records", "files"):
            pass
    except ProcessDied as error:
        crashes = _note_crashes(missing)
        if crashes:
            raise InputError(
                f"a worker process crashed at {', '.join(crashes)}; run the same command again: it "
                "leaves that out"
            ) from error
        at_hand = [shards.read_crash_note(Shard(one.path, ()).at_hand)[0] for one in missing]
        names = ", ".join(filter(None, at_hand)) or "none"
        raise InputError(f"{error}; photos at hand: {names}") from error


def _summarise(plan: list[_Planned], photos: PhotoTable, identity: dict) -> tuple[dict, np.ndarray]:
    """Returns the contents of records.json, and the training photos of each label."""
    totals, kinds = collections.Counter(), collections.Counter()
    counts = np.zeros(int(photos.labels[-1]) + 1, np.int64)
    for planned in plan:
        split, result = planned.path.name.split("-")[0], files.read_json(planned.note)
        totals[split] += result["records"]
        kinds.update(result["kinds"])
        if split == "train":
            np.add.at(counts, photos.labels[planned.numbers], 1)
            np.subtract.at(counts, result["left_out"], 1)
    summary = {
        "format_version": FORMAT_VERSION,
        "configuration": identity,
        "upright": identity["upright"],
        "num_classes": len(counts),
        "train": totals["train"],
        "validation": totals["validation"],
        "left_out": sum(kinds[kind] for kind in shards.LEFT_OUT),
        "odd_photos": {kind: kinds[kind] for kind in shards.KINDS},
        "excluded": photos.excluded,
        "excluded_not_listed": photos.excluded_not_listed,
        "landmarks_without_training_photo": int((counts == 0).sum()),
    }
    return summary, counts


def _write_odd(plan: list[_Planned], path: pathlib.Path) -> None:
    """Joins the lists of odd photos, file by file, under one header."""
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(shards.ODD_HEADER.encode())
        for planned in plan:
            with pathlib.Path(f"{planned.path}.tsv").open("rb") as part:
                shutil.copyfileobj(part, file)


def _report(summary: dict, output: pathlib.Path) -> None:
    log.info(
        "%s: %d landmarks, %d training and %d validation photos",
        *(output, summary["num_classes"], summary["train"], summary["validation"]),
    )
    odd = summary["odd_photos"]

    def listed(kinds):
        return ", ".join(f"{odd[kind]} {kind}" for kind in kinds if odd.get(kind)) or "0"

    log.info(
        "left out: %s; re-encoded as RGB JPEG: %s; rotated by EXIF, %s: %d; landmarks without a "
        "training photo: %d",
        *(listed(shards.LEFT_OUT), listed(shards.ENCODED_AGAIN)),
        "turned" if summary["configuration"].get("upright") else "kept as stored",
        *(odd["exif_rotated"], summary["landmarks_without_training_photo"]),
    )
    if odd.get("too_large"):
        log.info("too large: of more pixels than --max_pixels (0: no bound), or of too many scans")
    if summary["configuration"]["exclude"]:
        log.info(
            "excluded: %d photos; ids of --exclude that are not in the list: %d",
            *(summary["excluded"], summary["excluded_not_listed"]),
        )
    if any(odd.values()):
        log.info("these photos are listed in %s", output / _ODD)


def _build(settings: RecordsConfig, photos: PhotoTable, landmarks: list, identity: dict) -> dict:
    output = pathlib.Path(settings.output_dir)
    building = output / _BUILDING
    taken = (
        f"another process is building records in {output}; wait for it or choose another "
        "--output_dir"
    )
    with files.lock(building / "lock", taken):
        summary = _finished(output, identity)
        if summary is not None:  # by another process, a moment ago
            shutil.rmtree(building)
            return summary
        _start(output, building, identity)
        if settings.in_tars:
            photos = tars.locate(photos, building / "tars", settings.md5_dir, settings.processes)
        plan = _plan(settings, photos.labels, building)
        _write(plan, photos, settings)
        summary, counts = _summarise(plan, photos, identity)
        if not summary["train"]:
            listed = pathlib.Path(f"{plan[0].path}.tsv").read_text(encoding="utf-8")
            _, path, kind, detail = listed.splitlines()[0].split("\t")
            shutil.rmtree(building)
            raise InputError(f"none of {len(photos)} photos can be used: {path}: {kind}, {detail}")
        if any(summary["odd_photos"].values()):
            _write_odd(plan, output / _ODD)
        classes.write_classes(output, landmarks, counts)
        for planned in plan:
            if planned.path.exists():  # else an interrupted run has already moved it
                planned.path.replace(output / planned.path.name)
        files.write_json(output / _SUMMARY, summary)
        shutil.rmtree(building)
    return summary


def build_records(settings: RecordsConfig) -> dict:
    """Builds training and validation TFRecords from photo files or tars and their labels.
    Photos that are missing, corrupt, unsupported or too large are left out. Photos that are not
    JPEG, grey or CMYK are re-encoded as RGB JPEG (quality 95), and so are those that --upright
    turns. All of these are counted in records.json and listed in odd_photos.tsv. A landmark's only
    photo is used for training. After an interruption or a crash, run the same command again: it
    keeps the files that are finished and passes over the photo that it died at.

    Writes `train-*` and `validation-*` files, relabeling.csv (new_label,old_label),
    class_counts.csv (label,photos), odd_photos.tsv (id, path, kind, detail) if there are any, and
    records.json last.

    Returns:
      The contents of records.json: numbers of photos per split, of classes, of odd photos.

    Raises:
      InputError: on a wrong list, a damaged tar, a full disk, or an output folder in which another
        process is at work or that holds records of another configuration; and when none of the
        photos can be used.
    """
    output = pathlib.Path(settings.output_dir)
    if settings.md5_dir and not settings.in_tars:
        raise InputError(
            f"--md5_dir={settings.md5_dir} checks tars, but {settings.root} holds none such as "
            "images_000.tar"
        )
    photos, landmarks = read_photos(settings)
    identity = _identity(settings, photos, landmarks)
    summary = _finished(output, identity) or _build(settings, photos, landmarks, identity)
    _report(summary, output)
    if settings.strict and summary["left_out"]:
        where = output / _ODD
        raise InputError(f"{summary['left_out']} photos were left out: see {where} (--strict)")
    return summary
