"""GLDv2's lists, or a person's own CSV, and photo files -> DELG-schema TFRecords.

    python -m dolg_tf.data.gldv2 --images_dir=train --train_csv=train.csv \
        --train_clean_csv=train_clean.csv --output_dir=records
"""

import collections
import csv
import dataclasses
import hashlib
import io
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from dolg_tf import config, files, progress
from dolg_tf.config import InputError, option
from dolg_tf.data import records, shards
from dolg_tf.data.shards import Photo, Shard

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_SUMMARY = "records.json"  # written last: a folder that has it is whole
_BUILDING = ".building"  # finished shards wait here for the others
_GLDV2_ID = re.compile(r"[0-9A-Za-z_-]{3,64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Photos and labels, and how they become records."""

    images_dir: str = option(
        "folder with GLDv2's a/b/c/ID.jpg, or of the paths in --labels_csv (empty: its own folder)",
        "",
    )
    train_csv: str = option("GLDv2's train.csv: id,url,landmark_id", "")
    train_clean_csv: str = option(
        "GLDv2's train_clean.csv: landmark_id,images; when given, it alone decides", ""
    )
    labels_csv: str = option(
        "your own list instead: path,landmark and perhaps split, of which train is taken", ""
    )
    output_dir: str = option("folder of the records")
    num_shards: int = option("record files of each split", 128, unit="files")
    validation_fraction: float = option(
        "share of each landmark's photos kept for validation; a single photo is trained on", 0.2
    )
    seed: int = option("of the split and the order", 0)
    processes: int = option("how many work at once; 0: one for each core", 0)
    strict: bool = option("fail on the first missing or undecodable photo", False)

    def __post_init__(self):
        if bool(self.labels_csv) == bool(self.train_csv or self.train_clean_csv):
            raise InputError("give --train_csv and --train_clean_csv, or else --labels_csv")
        if not self.labels_csv and not self.images_dir:
            raise InputError("--images_dir is required: the folder with GLDv2's a/b/c/ID.jpg")
        if not 1 <= self.num_shards <= 99999:
            raise InputError(f"--num_shards={self.num_shards} must be 1 to 99999")
        if not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"--validation_fraction={self.validation_fraction} must be at least 0 and below 1"
            )
        if self.processes < 0:
            raise InputError(f"--processes={self.processes} must be at least 0")


# --- lists --------------------------------------------------------------------------------


def _csv_rows(path: str, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields ("FILE, line N", values of the columns) of each row of a CSV; "" for no column."""
    csv.field_size_limit(1 << 30)  # GLDv2 lists all photos of a landmark in one field
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: no such file")
    with pathlib.Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            for name in columns:
                if name not in header and name != "split":
                    raise InputError(f"{path}, line 1: no column {name!r}, only {','.join(header)}")
            places = [header.index(name) if name in header else None for name in columns]
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if row and len(row) != len(header):
                    raise InputError(f"{where}: {len(row)} fields, the header has {len(header)}")
                if row:
                    yield where, ["" if place is None else row[place] for place in places]
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, after line {reader.line_num}: {error}") from error


def _gldv2_rows(settings: RecordsConfig) -> Iterator[tuple[str, str, int]]:
    """Yields where, photo id and landmark."""
    if settings.train_clean_csv:
        listed = _csv_rows(settings.train_clean_csv, ("images", "landmark_id"))
    else:
        listed = _csv_rows(settings.train_csv, ("id", "landmark_id"))
    for where, (ids, landmark) in listed:
        if not re.fullmatch(r"[0-9]{1,18}", landmark):
            raise InputError(f"{where}: landmark_id is {landmark!r}, not a number")
        for name in ids.split() if settings.train_clean_csv else [ids]:
            if not _GLDV2_ID.fullmatch(name):
                raise InputError(f"{where}: {name!r} is no image id")
            yield where, name, int(landmark)


def own_rows(labels_csv: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields where, path, landmark and split of a person's own list; no split means train."""
    columns = ("path", "landmark", "split")
    for where, (path, landmark, split) in _csv_rows(labels_csv, columns):
        if not path or not landmark:
            raise InputError(f"{where}: an empty {'landmark' if path else 'path'}")
        yield where, path, landmark, split or "train"


def _own_training_rows(settings: RecordsConfig) -> Iterator[tuple[str, str, str]]:
    """Yields where, path and landmark."""
    for where, path, landmark, split in own_rows(settings.labels_csv):
        if split == "train":
            yield where, path, landmark


def read_photos(settings: RecordsConfig) -> tuple[list[Photo], list]:
    """Reads the lists.

    Returns:
      The photos, ordered by label and id, and the landmark of each label: labels are dense and
      ascend with the landmark.

    Raises:
      InputError: naming file and line of what is wrong in a list, or when it names no photo.
    """
    found, seen = [], set()
    own = bool(settings.labels_csv)
    root = pathlib.Path(settings.images_dir or pathlib.Path(settings.labels_csv).parent)
    for where, name, landmark in _own_training_rows(settings) if own else _gldv2_rows(settings):
        if name in seen:
            raise InputError(f"{where}: {name!r} is listed twice")
        seen.add(name)
        if own:
            try:
                path = str(files.inside(root, name))
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            name = str(pathlib.PurePosixPath(name).with_suffix(""))
        else:
            path = f"{root}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"
        found.append((landmark, name, path))
    if not found:
        source = settings.labels_csv or settings.train_clean_csv or settings.train_csv
        raise InputError(f"{source}: it lists no photo to train on")
    found.sort()
    landmarks = sorted({landmark for landmark, _, _ in found})
    labels = {landmark: label for label, landmark in enumerate(landmarks)}
    return [Photo(name, path, labels[landmark]) for landmark, name, path in found], landmarks


def split_photos(labels: np.ndarray, validation_fraction: float, seed: int) -> dict:
    """Splits photos by chance, landmark by landmark.

    Args:
      labels: int (N,), ascending.
      validation_fraction: share of each landmark's photos, rounded; at least one is trained on.
      seed: of the choice and the order.

    Returns:
      {"train": numbers, "validation": numbers}, int64 and shuffled, each photo in one of them.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]  # each landmark in random order
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.minimum(np.floor(counts * validation_fraction + 0.5), counts - 1)
    validation = np.zeros(len(labels), bool)
    validation[grouped[place < held[labels]]] = True
    return {"train": order[~validation[order]], "validation": order[validation[order]]}


# --- building -----------------------------------------------------------------------------


def _identity(settings: RecordsConfig, photos: list[Photo]) -> dict:
    """Returns what must be equal for a rerun to go on: the options and the listed photos."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.id}\t{photo.path}\t{photo.label}\n".encode())
    free = ("output_dir", "processes", "strict")
    options = {k: v for k, v in config.to_dict(settings).items() if k not in free}
    return {**options, "photos_sha256": digest.hexdigest()}


def _start(output: pathlib.Path, identity: dict) -> dict | None:
    """Prepares the output folder; returns the summary when all is built already.

    Raises:
      InputError: when the folder holds records of another configuration, or foreign ones.
    """
    summary, building = output / _SUMMARY, output / _BUILDING / "configuration.json"
    for path in (summary, building):
        if path.exists():
            found = files.read_json(path, FORMAT_VERSION)
            before = found["configuration"]
            changed = sorted(key for key in identity if before.get(key) != identity[key])
            if changed:
                raise InputError(
                    f"{output} holds records of another configuration ({changed[0]} was "
                    f"{before.get(changed[0])!r}); delete that folder, or choose another"
                )
            return found if path == summary else None
    foreign = sorted(
        path for split in ("train", "validation") for path in output.glob(f"{split}-*")
    )
    if foreign:
        raise InputError(f"{foreign[0]} is in the way; delete that folder, or choose another")
    files.write_json(building, {"format_version": FORMAT_VERSION, "configuration": identity})
    return None


def _plan(settings: RecordsConfig, photos: list[Photo], building: pathlib.Path) -> list[Shard]:
    labels = np.array([photo.label for photo in photos])
    plan = []
    splits = split_photos(labels, settings.validation_fraction, settings.seed)
    for split, numbers in splits.items():
        count = min(settings.num_shards, len(numbers))  # no empty files
        for shard in range(count):
            members = [photos[number] for number in numbers[shard::count]]
            name = records.shard_name(split, shard, count)
            plan.append(Shard(building / name, members, settings.strict))
    return plan


def _write(plan: list[Shard], processes: int) -> list[dict]:
    """Writes the shards that are not there yet; returns the results of all, in their order."""
    notes = [pathlib.Path(f"{shard.path}.json") for shard in plan]
    missing = [shard for shard, note in zip(plan, notes, strict=True) if not note.exists()]
    if len(missing) < len(plan):
        log.info("%d of %d record files are kept", len(plan) - len(missing), len(plan))
    processes = min(processes or os.cpu_count() or 1, max(len(missing), 1))
    written = shards.write_shards(missing, processes)
    for _ in progress.track(written, len(missing), "records", "files"):
        pass
    return [files.read_json(note) for note in notes]


def _summarise(plan: list[Shard], results: list[dict], num_classes: int, identity: dict) -> dict:
    totals, reencoded = collections.Counter(), collections.Counter()
    trained = np.zeros(num_classes, np.int64)
    for shard, result in zip(plan, results, strict=True):
        split = shard.path.name.split("-")[0]
        totals[split] += result["records"]
        totals["bad"] += len(result["bad"])
        totals["exif_rotated"] += result["exif_rotated"]
        reencoded.update(result["reencoded"])
        if split == "train":
            np.add.at(trained, [photo.label for photo in shard.photos], 1)
            np.subtract.at(trained, [label for _, label, _, _ in result["bad"]], 1)
    return {
        "format_version": FORMAT_VERSION,
        "configuration": identity,
        "num_classes": num_classes,
        "train": totals["train"],
        "validation": totals["validation"],
        "bad": totals["bad"],
        "reencoded": dict(sorted(reencoded.items())),
        "exif_rotated": totals["exif_rotated"],
        "landmarks_without_training_photo": int((trained == 0).sum()),
    }


def _report(summary: dict, output: pathlib.Path) -> None:
    log.info(
        "%s: %d landmarks, %d training and %d validation photos",
        *(output, summary["num_classes"], summary["train"], summary["validation"]),
    )
    again = ", ".join(f"{count} {source}" for source, count in summary["reencoded"].items())
    log.info(
        "bad photos left out: %d (%s); encoded again as RGB JPEG: %s; rotated by EXIF, kept as "
        "stored: %d; landmarks without a training photo: %d",
        *(summary["bad"], output / "bad_photos.txt" if summary["bad"] else "no list"),
        *(again or "0", summary["exif_rotated"], summary["landmarks_without_training_photo"]),
    )


def build_records(settings: RecordsConfig) -> dict:
    """Builds training and validation TFRecords from photo files and their labels.

    Writes `train-*` and `validation-*` files, relabeling.csv (new_label,old_label), bad_photos.txt
    (id, path, reason) when there are any, and last records.json. Run again after an interruption,
    it keeps the files that are done; the same holds when all are.

    Returns:
      The contents of records.json: counts of photos by split, of classes, of bad photos.

    Raises:
      InputError: on a list that is wrong, photos none of which can be used, or an output folder
        with records of another configuration.
    """
    output = pathlib.Path(settings.output_dir)
    building = output / _BUILDING
    photos, landmarks = read_photos(settings)
    identity = _identity(settings, photos)
    summary = _start(output, identity)
    if summary is None:
        plan = _plan(settings, photos, building)
        results = _write(plan, settings.processes)
        summary = _summarise(plan, results, len(landmarks), identity)
        bad = [entry for result in results for entry in result["bad"]]
        if not summary["train"]:
            shutil.rmtree(building)
            raise InputError(f"none of {len(photos)} photos can be used: {bad[0][2]}: {bad[0][3]}")
        if bad:
            lines = [f"{name}\t{path}\t{reason}\n" for name, _, path, reason in sorted(bad)]
            files.write_text(output / "bad_photos.txt", "".join(lines))
        table = io.StringIO()
        rows = [("new_label", "old_label"), *enumerate(landmarks)]
        csv.writer(table, lineterminator="\n").writerows(rows)
        files.write_text(output / "relabeling.csv", table.getvalue())
        for shard in plan:
            if shard.path.exists():  # else an interrupted run moved it already
                shard.path.replace(output / shard.path.name)
        files.write_json(output / _SUMMARY, summary)
        shutil.rmtree(building)
    _report(summary, output)
    if settings.strict and summary["bad"]:
        raise InputError(f"{summary['bad']} bad photos, see {output / 'bad_photos.txt'} (--strict)")
    return summary


if __name__ == "__main__":
    config.main(build_records, RecordsConfig)
