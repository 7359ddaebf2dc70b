"""An index of photos: build it, and keep it in step with the photos.

    dolg index build --descriptors=SET --output=INDEX
    dolg index build --descriptors=SET --local=SET.local --output=INDEX
    dolg index add --index=INDEX --descriptors=SET
    dolg index remove --index=INDEX --ids=ids.txt
    dolg index rebuild --index=INDEX --saved_model=MODEL

With --local, an index also holds the local features of its photos, which stay in step with them.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import shutil

import numpy as np

from dolg_tf.data.photo_ids import id_of
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import directory, ivfpq, photos
from dolg_tf.retrieval.index.directory import SAME_SPACE, Index
from dolg_tf.retrieval.index.local import of_added, of_photos
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.linking import Part
from dolg_tf.retrieval.local.shards import beside
from dolg_tf.retrieval.meta import of_one_folder, photo_roots
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rows import Reordered, Rows
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option

log = logging.getLogger(__name__)

# What local features must share for as many of them to agree.
_SAME_COUNTS = (*feature_set.SAME_SPACE, "scales", "threshold", "max_features", "max_side")


def _order(ids) -> np.ndarray:
    """Returns the order that sorts the ids."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)


# --- build ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig(NormConfig):
    """Which descriptors become an index, and of which kind."""

    descriptors: str = option("descriptor set of the photos to search in")
    local: str = option(
        "local feature set of these photos, for `dolg index query --rerank=geometric`; empty: none",
        "",
    )
    other_local_model: bool = option(
        "the local features may be of another model than the descriptors; photos that are searched "
        "for then need --query_local",
        False,
    )
    output: str = option("index (a directory) to write")
    kind: str = option(
        "flat: exact; ivfpq: approximate, with about 28 times less memory",
        "flat",
        choices=directory.KINDS,
    )
    nlist: int = option(
        "ivfpq: cells that photos are sorted into; 0: chosen by the number of photos", 0
    )
    m: int = option(
        "ivfpq: bytes per photo, a divisor of the descriptor's length; 0: an eighth of the length",
        0,
    )
    nprobe: int = option("ivfpq: cells that a search visits", 32)
    overwrite: bool = option("replace an existing index", False)

    def __post_init__(self):
        at_least(self, nlist=0, m=0, nprobe=1)


def build(settings: BuildConfig) -> Index:
    """Builds an index: a descriptor set in, an index out.

    Raises:
      InputError: when the set is damaged, or the output exists and must not be replaced.
    """
    with directory.locked(settings.output, new=True) as path:
        files.check_output(path, settings.overwrite, "index.faiss", "meta.json")
        _warn_of_calibration(path)
        made = {"nlist": settings.nlist, "m": settings.m, "nprobe": settings.nprobe}
        found, local = descriptors.read(settings.descriptors, settings.normalize), None
        if settings.local and found.ids:
            described = found.source, found.meta
            local = of_photos(settings.local, found.ids, described, settings.other_local_model)
        return _build(found, path, made if settings.kind == "ivfpq" else None, local)


def _warn_of_calibration(path: pathlib.Path) -> None:
    """Tells that an index which is replaced was calibrated: what was fitted goes with it."""
    with contextlib.suppress(InputError):  # none is there, or a damaged one
        if directory.read_meta(path)["calibration"] is not None:
            log.warning("%s was calibrated, the new index is not; calibrate it again", path)


def _build(
    found: DescriptorSet,
    path: pathlib.Path,
    made: dict | None,
    local: Part | None,
    calibration: dict | None = None,
) -> Index:
    """Writes the index of a set.

    Args:
      found: the set.
      path: of the index.
      made: --nlist, --m and --nprobe; None: it is exact.
      local: local features, a row for each photo of the set; None: the index has none.
      calibration: see `directory.flat_meta`.
    """
    if not found.ids:
        raise InputError(
            f"{found.source}: an index needs a descriptor set with the ids of its photos"
        )
    order = _order(found.ids)
    ids, rows = [found.ids[row] for row in order], Reordered(found.descriptors, order)
    features = [(local[0], local[1][order])] if local else []
    meta = directory.flat_meta(found.meta, rows.shape[1], calibration)
    if made is None:
        directory.write(path, ids, meta, functools.partial(directory.write_flat, rows), features)
        log.info("%s: %d photos, exact", path, len(ids))
        return Index.open(path)
    nlist, m = ivfpq.sizes(*rows.shape, made["nlist"], made["m"])
    built = ivfpq.build(rows, nlist, m, made["nprobe"])
    shares = ivfpq.recall(built, rows)
    # Also as given: a 0 lets a rebuild with more photos, or another width, choose its own.
    asked = {key: made[key] for key in ("nlist", "m", "nprobe")}
    measured = {"cells": nlist, "bytes": m, "recall": shares, "recall_rows": len(ids)}
    meta |= {"kind": "ivfpq", "ivfpq": asked | measured}
    directory.write(path, ids, meta, functools.partial(ivfpq.write, built), features)
    told = ", ".join(f"{100 * share:.1f} % of the {k} nearest" for k, share in shares.items())
    log.info("%s: %d photos; it finds %s that exact search finds", path, len(ids), told)
    return Index.open(path)


# --- add and remove ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddConfig(NormConfig):
    """Which photos are added to an index."""

    index: str = option("index (a directory)")
    descriptors: str = option("descriptor set of the photos to add")
    local: str = option("their local feature set, for an index that has local features", "")


def add(settings: AddConfig) -> Index:
    """Adds photos to an index.

    Raises:
      InputError: when a photo is already in the index, or was described differently.
    """
    with directory.locked(settings.index) as path:
        index, new = Index.open(path), descriptors.read(settings.descriptors, settings.normalize)
        index.check_same(new, directory.SAME_MAKING)
        local = of_added(index, settings.local, new.ids)
        twice = set(index.ids) & set(new.ids)
        if twice:
            raise InputError(
                f"{path} already has {len(twice)} of these photos, such as {min(twice)!r}; "
                "remove them first"
            )
        _warn_of_other_names(index.ids, new.ids, path)
        if not of_one_folder(new.meta, index.meta):
            log.warning(
                "the added photos are in %s, those of the index in %s: rebuild looks there alone",
                *(photo_roots(new.meta), photo_roots(index.meta)),
            )
        return _change(index, list(index.ids) + list(new.ids), new, local)


def _warn_of_other_names(old, new, path: pathlib.Path) -> None:
    """Tells of photos that may be in an index already, under an id with or without suffix.

    An id has its suffix only beside another file of that name, which may have come or gone.
    """
    twice = []
    for these, others in ((old, set(new)), (new, set(old))):
        for id_ in these:
            short = id_of(id_)
            if short != id_ and short in others:
                twice.append((short, id_))
    if twice:
        log.warning(
            "%s: %d photos may be there twice now, such as %r and %r; if they are one, remove the "
            "older",
            *(path, len(twice), *min(twice)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """Which photos are removed from an index."""

    index: str = option("index (a directory)")
    ids: str = option("text file of the ids to remove, one per line")


def remove(settings: RemoveConfig) -> Index:
    """Removes photos from an index.

    Raises:
      InputError: when one is not in the index, or none would be left.
    """
    with directory.locked(settings.index) as path:
        index, gone = Index.open(path), set(directory.read_ids(settings.ids))
        unknown = gone - set(index.ids)
        if unknown:
            raise InputError(
                f"{settings.ids}: {len(unknown)} of its {len(gone)} ids are not in {path}, such as "
                f"{min(unknown)!r}"
            )
        if len(gone) == len(index):
            raise InputError(
                f"{settings.ids}: these are all photos of {path}; delete the directory instead"
            )
        return _change(index, [None if id_ in gone else id_ for id_ in index.ids])


def _change(
    index: Index, ids: list, new: DescriptorSet | None = None, local: Part | None = None
) -> Index:
    """Writes the index with new rows after the old, and without those whose id is None."""
    features = []
    if index.local is not None:
        old = [id_ for id_ in ids[: len(index)] if id_ is not None]
        features = [(index.local, index.local.rows_of(old)), *([local] if local else [])]
    directory.check_sum(index.path / "index.faiss", index.meta)
    kept = np.array([row for row, id_ in enumerate(ids) if id_ is not None], np.int64)
    order = kept[_order([ids[row] for row in kept])]
    if index.approximate is None:
        rows = Rows([index.descriptors] + ([new.descriptors] if new else []))
        write = functools.partial(directory.write_flat, Reordered(rows, order))
    else:
        if new:
            ivfpq.add(index.approximate, new.descriptors, len(index))
        labels = np.full(len(ids), -1, np.int64)
        labels[order] = np.arange(len(order))
        ivfpq.relabel(index.approximate, labels)
        write = functools.partial(ivfpq.write, index.approximate)
    directory.write(index.path, [ids[row] for row in order], index.meta, write, features)
    log.info("%s: %d photos, before: %d", index.path, len(order), len(index))
    return Index.open(index.path)


# --- rebuild -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class RebuildConfig:
    """Which index is rebuilt, and with which model."""

    index: str = option("index (a directory)")
    saved_model: str = option("SavedModel that describes the photos from now on")
    image_root: str = option("folder of the photos; empty: where they were described", "")
    max_bad: int = option("unreadable photos to drop from the index", 0, unit="photos")

    def __post_init__(self):
        at_least(self, max_bad=0)


def rebuild(settings: RebuildConfig) -> Index:
    """Describes the photos of an index again, with another model, and replaces the index.

    One with local features has those of the new model then.

    The same command resumes an interrupted run: until the new index is complete, the old one stays
    in place and the new descriptors are collected beside it, in INDEX.rebuild. Scales are those of
    the new model's export.

    Raises:
      InputError: when photos are missing or were cropped to the boxes of a ground truth,
        descriptors were whitened after extraction, or another rebuild was begun.
    """
    with directory.locked(settings.index) as path:
        index = Index.open(path)
        work = path.with_name(f"{path.name}.rebuild")
        found, features = photos.describe_anew(
            index, settings.saved_model, settings.image_root, work, settings.max_bad
        )
        calibration = _still_valid(index, found, features)
        local = None if features is None else (features, features.rows_of(found.ids))
        rebuilt = _build(found, path, index.meta["ivfpq"], local, calibration)
        for made in (work, beside(work)):
            shutil.rmtree(made, ignore_errors=made is not work)
        return rebuilt


def _still_valid(
    index: Index, found: DescriptorSet, features: LocalFeatureSet | None
) -> dict | None:
    """Returns what of an index's calibration holds for its photos as they were described anew."""
    calibration, told = index.meta["calibration"], "%s: its %s fitted for %s; calibrate again"
    if calibration is None:
        return None
    if any(found.meta[key] != index.meta[key] for key in SAME_SPACE):
        log.warning(told, index.path, "threshold was", "the old descriptors")
        return None
    if features is None or "geometric" not in calibration:
        return calibration
    old, new = (feature_set.how_made(one)[1] for one in (index.local, features))
    if all(old[key] == new[key] for key in _SAME_COUNTS):
        return calibration
    if index.min_inliers:
        log.warning(told, index.path, "threshold and its weight were", "the old local features")
        return None
    log.warning(told, index.path, "weight of inliers was", "the old local features")
    return {key: value for key, value in calibration.items() if key != "geometric"}
