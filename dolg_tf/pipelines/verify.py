"""Checks whether things that the stages left on disk are sound; their files tell their kind."""

import dataclasses
import glob
import logging
import pathlib
import re
from collections.abc import Callable

from dolg_tf.data.records import verify as records
from dolg_tf.pipelines import asmk_checks, checks, export_checks
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

_SHARDS = "*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"
_RECORD_FILE = re.compile(r".*(-\d{5}-of-\d{5}|\.tfrecords?)")
_OF_RECORDS = ("num_classes", "class_counts_csv", "faults_tsv", "processes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathConfig:
    """The thing to verify."""

    path: str = option(
        "TFRecords (their folder, one file or a glob), descriptor set or .npy, local feature set, "
        "index (of either kind), codebook, scores, model directory, run directory, SavedModel, "
        ".onnx or .tflite file",
        "",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig(records.VerifyConfig, PathConfig):
    """The thing to verify; every option but the path is for TFRecords."""

    file_pattern: str = option(
        "glob of TFRecords of any name; those named test-* need no labels", ""
    )

    def __post_init__(self):
        super().__post_init__()
        if bool(self.path) == bool(self.file_pattern):
            raise InputError("give either --path or --file_pattern")


@dataclasses.dataclass(frozen=True)
class Sound:
    """A thing that was found to be sound.

    Attributes:
      kind: one of `KINDS`, or "records".
      facts: what it holds, in short phrases.
    """

    kind: str
    facts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing on disk.

    Attributes:
      is_one: tells whether an existing path looks like one, even if parts of it are missing.
      check: raises InputError at the first damage; returns what it found, in short phrases.
    """

    is_one: Callable[[pathlib.Path], bool]
    check: Callable[[pathlib.Path], list[str]]


def _holds(*patterns: str) -> Callable[[pathlib.Path], bool]:
    """Returns a function that tells whether a folder holds a match of one of the patterns."""
    return lambda path: path.is_dir() and any(any(path.glob(pattern)) for pattern in patterns)


def _ends_in(suffix: str) -> Callable[[pathlib.Path], bool]:
    return lambda path: path.is_file() and path.suffix == suffix


def _is_descriptors(path: pathlib.Path) -> bool:
    return _ends_in(".npy")(path) or _holds("descriptors-*.npy", "unfinished", "ids.txt")(path)


def _is_run(path: pathlib.Path) -> bool:
    return _holds("checkpoints", "flags.txt", "metrics.jsonl")(path)


# In the order in which they are tried: an index and a descriptor set both have an ids.txt.
KINDS = {
    "SavedModel": Kind(_holds("saved_model.pb", "assets.extra"), export_checks.check_saved_model),
    "index": Kind(_holds("index.faiss"), checks.check_index),
    "ASMK index": Kind(_holds("codes.npy", "codebook.npz"), asmk_checks.check_asmk),
    "scores": Kind(_holds("scores.npy"), asmk_checks.check_scores),
    "codebook": Kind(asmk_checks.is_codebook, asmk_checks.check_codebook),
    "local feature set": Kind(_holds("offsets.npy", "sums.npy"), checks.check_local),
    "descriptor set": Kind(_is_descriptors, checks.check_descriptors),
    "run directory": Kind(_is_run, checks.check_run),
    "model directory": Kind(_holds("config.json", "model.weights.h5"), checks.check_model),
    "ONNX file": Kind(_ends_in(".onnx"), export_checks.check_onnx),
    "LiteRT file": Kind(_ends_in(".tflite"), export_checks.check_litert),
}


def _records_pattern(path: pathlib.Path) -> str:
    """Returns the glob of the TFRecords that a path names; "" if it names none."""
    if not path.exists():
        return str(path) if glob.has_magic(str(path)) else ""
    if path.is_file():
        return glob.escape(str(path)) if _RECORD_FILE.fullmatch(path.name) else ""
    return str(pathlib.Path(glob.escape(str(path)), _SHARDS)) if any(path.glob(_SHARDS)) else ""


def kind_of(path: files.Path) -> str:
    """Returns the one of `KINDS` that a path is, by its name and the names of its files.

    Raises:
      InputError: when there is nothing there, or nothing of a known kind.
    """
    path = pathlib.Path(path)
    if not workshop.recover(path):
        raise InputError(f"--path={path}: no such file or folder")
    for name, kind in KINDS.items():
        if kind.is_one(path):
            return name
    raise InputError(
        f"--path={path} is none of: records, {', '.join(KINDS)}; for TFRecords with "
        "other names give --file_pattern"
    )


def verify(settings: VerifyConfig) -> Sound:
    """Checks records, descriptor sets, indexes, networks, runs and exports.

    The exit code is 0 if it is sound, else 1 with the first damage as the error; for TFRecords all
    faults are listed. A bare .npy counts as a descriptor set.

    Raises:
      InputError: naming the first damage, or when the path is none of these.
    """
    path = pathlib.Path(settings.path)
    pattern = settings.file_pattern or _records_pattern(path)
    if pattern:
        of_records = dataclasses.replace(settings, path="", file_pattern=pattern)
        found = records.verify_records(of_records, settings.path)
        return Sound("records", tuple(f"{count:,} {name}" for name, count in found.items()))
    kind = kind_of(path)
    for name in _OF_RECORDS:
        if value := getattr(settings, name):
            raise InputError(f"--{name}={value} is for TFRecords; {path} is another kind: {kind}")
    log.info("%s: %s", path, kind)
    facts = KINDS[kind].check(path)
    log.info("%s: sound; %s", path, ", ".join(facts))
    return Sound(kind, tuple(facts))
