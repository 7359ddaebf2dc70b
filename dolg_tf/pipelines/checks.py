"""Checkers of what the stages leave on disk, one per kind.

A checker takes a path, raises InputError at the first damage and returns what it found, in short
phrases. It imports TensorFlow only if its kind needs it.

Without a checksum not every flipped bit shows: in the rows of a descriptor set and in the weights
of a network or an export, a number that is still plausible goes unnoticed.
"""

import json
import pathlib

import numpy as np

from dolg_tf.retrieval import descriptors, norms
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

_NORM_TOLERANCE = 2e-3  # float16 rounds a norm by 5e-4
_DIVIDE = (
    "extract them again; rows that another tool wrote at other lengths are divided by their norms "
    "by the commands that score or index them, with --normalize"
)


def short(digest) -> str:
    """Returns the beginning of a SHA-256, enough to tell models apart; other names as they are."""
    return str(digest)[:12] if len(str(digest)) == 64 else str(digest)


def check_norms(rows, source: files.Path, remedy: str) -> None:
    """Makes sure that rows, (N, D), are finite and have unit L2 norm."""
    norms.check_rows(rows, source, remedy=remedy, tolerance=_NORM_TOLERANCE)


def read_all(path: pathlib.Path) -> None:
    """Makes sure that every file of a directory can be read."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        try:
            files.sha256(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror or error})") from error


# --- descriptors ---------------------------------------------------------------------


def check_descriptors(path: pathlib.Path) -> list[str]:
    """Checks a descriptor set or a bare `.npy`: counts, ids, every row."""
    found = descriptors.read(path, remedy=_DIVIDE)
    check_norms(found.descriptors, path, "extract the set again")
    facts = [f"{len(found):,} descriptors of width {found.descriptors.shape[1]}"]
    if found.ids is None:
        return facts
    stored = sorted({array.dtype.name for array in found.descriptors.arrays})
    if stored != [found.meta["dtype"]]:
        raise InputError(
            f"{path}: the rows are {' and '.join(stored)}, meta.json says {found.meta['dtype']!r}; "
            "extract the set again"
        )
    bad = len(found.meta["bad"])
    return [*facts, f"model {short(found.meta['model_hash'])}", f"{bad:,} unreadable photos"]


def check_local(path: pathlib.Path) -> list[str]:
    """Checks a local feature set: the checksum and every number of each photo's features."""
    found = feature_set.read(path)
    told = check_features(found, range(len(found)))
    meta = found.meta
    width = f"{meta['kind']} of width {meta['dimensions']}, as {meta['dtype']}"
    return [f"{len(found):,} photos", told, width]


def check_index(path: pathlib.Path) -> list[str]:
    """Checks an index: its checksums, ids, counts, every row of an exact one, local features."""
    found = directory.Index.open(path)
    directory.check_sum(path / "index.faiss", found.meta)
    rows = found.meta["rows"]
    if len(found.ids) != rows:
        raise InputError(f"{path}: {rows} rows for {len(found.ids)} ids; build the index again")
    if any(a >= b for a, b in zip(found.ids, found.ids[1:], strict=False)):
        raise InputError(f"{path / 'ids.txt'}: ids do not ascend; build the index again")
    if found.descriptors is not None:
        check_norms(found.descriptors, path / "index.faiss", "build the index again")
    threshold = "not calibrated" if found.threshold is None else f"threshold {found.threshold:.4f}"
    threshold += f" and {found.min_inliers} inliers" if found.min_inliers else ""
    kind, width = found.meta["kind"], found.meta["width"]
    model = short(found.meta["model_hash"])
    facts = [f"{kind}, {rows:,} photos of width {width}", f"model {model}", threshold]
    if found.local is None:
        return facts
    return [*facts, check_features(found.local, found.local.rows_of(found.ids))]


def check_features(found: LocalFeatureSet, rows) -> str:
    """Checks the local features of photos: checksums, and that all numbers are sound."""
    for row in progress.track(rows, len(rows), "local features"):
        features, where = found[row], f"{found.source}: {found.ids[row]!r}"
        for name in ("positions", "scales", "strengths"):
            if not np.isfinite(getattr(features, name)).all():
                raise InputError(f"{where}: {name} that are not finite; {feature_set.REMEDY}")
        lengths = norms.norms_of(features.descriptors, where)
        norms.check_finite(lengths, where)
        some = lengths[lengths > 0]  # of a zero, no direction is known
        norms.check_unit(some, where, remedy=feature_set.REMEDY, tolerance=_NORM_TOLERANCE)
    count = int(found.counts[np.asarray(rows, np.int64)].sum())
    return f"{count:,} local features of model {short(found.meta['model_hash'])}"


# --- networks ------------------------------------------------------------------------


def check_model(path: pathlib.Path) -> list[str]:
    """Checks a model directory: its configuration, and that finite weights fit it."""
    from dolg_tf.modeling.model_dir import load_network, weights_hash

    read_all(path)
    network, config, provenance = load_network(path)
    source = provenance.get("source", "unknown")
    return [
        f"{config.backbone}, {network.count_params():,} parameters",
        f"weights {short(weights_hash(network, config))}",
        f"source {source}",
    ]


def check_run(path: pathlib.Path) -> list[str]:
    """Checks a run directory: configuration, metrics, and every number of every checkpoint."""
    from dolg_tf.modeling.files.config_file import read_config
    from dolg_tf.modeling.model_dir import load_network

    read_all(path)
    read_config(path)
    if not (path / "flags.txt").is_file():
        raise InputError(f"{path / 'flags.txt'}: no such file; start the training again")
    lines = _check_metrics(path / "metrics.jsonl")
    counts = {folder: _check_checkpoints(path / folder) for folder in ("checkpoints", "best")}
    steps = {}
    for checkpoint in ("latest", "best") if counts["best"] else ("latest",):
        _, config, provenance = load_network(path, checkpoint)
        steps[checkpoint] = provenance["step"]
    return [
        config.backbone,
        f"{counts['checkpoints']} checkpoints",
        *(f"{checkpoint} of step {step:,}" for checkpoint, step in steps.items()),
        f"{lines:,} metrics",
    ]


def _check_metrics(path: pathlib.Path) -> int:
    """Returns how many metrics a metrics.jsonl has; a last line that was cut off is left out."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; start the training again")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
            np.int64(row["step"]), float(row["value"]), str(row["split"]), str(row["name"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not a metric ({error!r})") from error
    return len(whole)


def _check_checkpoints(folder: pathlib.Path) -> int:
    """Reads every variable of every checkpoint, against TensorFlow's own checksums."""
    import tensorflow as tf

    from dolg_tf.modeling.model_dir import reading_checkpoint

    with reading_checkpoint(folder):
        state = tf.train.get_checkpoint_state(str(folder))
        paths = list(state.all_model_checkpoint_paths) if state else []
    for path in paths:
        with reading_checkpoint(path):
            reader = tf.train.load_checkpoint(path)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
    return len(paths)
