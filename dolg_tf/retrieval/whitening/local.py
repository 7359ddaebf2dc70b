"""Reduction of local features: PCA learned on features of many photos, applied to local sets.

Reference: DELF reduces its local features to 40 or 128 numbers so, "Large-Scale Image Retrieval
with Attentive Deep Local Features", ICCV 2017.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval.local import feature_set, writing
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.whitening import learn
from dolg_tf.runtime.whitening import Whitening, load_whitening, write_whitening
from dolg_tf.stage import files, progress, workshop
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

DIMENSIONS = 128
_SAMPLE_BYTES = 1 << 28  # of features in float16: 131,072 of 1,024 numbers
_SEED = 0


def fit(path: files.Path, output: files.Path, dimensions: int, power: float) -> None:
    """Learns a reduction: local feature set in, .npz out.

    Args:
      path: of the set.
      output: the .npz.
      dimensions: length of the reduced descriptors; 0: 128, or as many directions as they vary in.
      power: see `learn.pca`.

    Raises:
      InputError: when the features are too few, reduced already, or stored as bits.
    """
    found = _read(path)
    total = int(found.counts.sum())
    if not total:
        raise InputError(f"{found.source}: no photo has a local feature; give a set with some")
    size = found.meta["dimensions"]
    rows = _sample(found, min(total, max(1, _SAMPLE_BYTES // (2 * size))))
    kept = dimensions or (DIMENSIONS if size > DIMENSIONS else 0)
    mean, projection = learn.pca(rows, kept, power)
    write_whitening(output, mean, projection, found.meta["model_hash"] or "")
    log.info(
        "%s: from %d of %d local features of %d photos, length %d to %d",
        *(output, len(rows), total, len(found), size, projection.shape[1]),
    )


def _read(path: files.Path) -> LocalFeatureSet:
    """Opens a set whose features may be reduced."""
    found = feature_set.read(path)
    if found.meta["reduction"] is not None:
        raise InputError(
            f"{found.source} is reduced already, with {found.meta['reduction']}; give the original "
            "set"
        )
    if found.meta["dtype"] == "bits":
        raise InputError(
            f"{found.source} holds signs alone, of which no direction is known; extract it with "
            "--local_dtype=float16"
        )
    return found


def _sample(found: LocalFeatureSet, count: int) -> np.ndarray:
    """Returns descriptors drawn from all features of a set, float16 (count, D)."""
    ends = np.cumsum(found.counts)
    rng = np.random.default_rng(_SEED)
    drawn = np.sort(rng.choice(int(ends[-1]), count, replace=False, shuffle=False))
    photos = np.searchsorted(ends, drawn, side="right")
    within = drawn - (ends - found.counts)[photos]
    rows = np.empty((count, found.meta["dimensions"]), np.float16)
    chosen, starts = np.unique(photos, return_index=True)
    parts = zip(chosen.tolist(), starts, np.append(starts[1:], count), strict=True)
    for photo, start, stop in progress.track(parts, len(chosen), "read local features"):
        rows[start:stop] = found.stored(photo).descriptors[within[start:stop]]
    return rows


def apply(path: files.Path, whitening: files.Path, output: files.Path) -> None:
    """Reduces a local feature set: set and .npz in, set out; its meta.json names the reduction.

    Raises:
      InputError: when the reduction is for features of another model or length, the set is reduced
        already, or something else is at the output.
    """
    found = _read(path)
    reduction = load_whitening(whitening, found.meta["dimensions"])
    reduction.check_model(whitening, found.source, found.meta["model_hash"])
    meta = found.meta | {
        "reduction": reduction.sha256,
        "dimensions": reduction.projection.shape[1],
    }
    if workshop.recover(output):
        _check_kept(output, found, meta)
        log.info("%s: kept, it is up to date", output)
        return
    photos = progress.track(_reduced(found, reduction), len(found), "reduce")
    writing.write(output, photos, meta)
    log.info("%s: %d photos, local features of length %d", output, len(found), meta["dimensions"])


def _check_kept(output: files.Path, found: LocalFeatureSet, meta: dict) -> None:
    """Makes sure that what is at the output is what would be made.

    Raises:
      InputError: when it is not.
    """
    there = pathlib.Path(output, "offsets.npy").exists() and feature_set.read(output)
    if not there or there.meta != meta or there.ids != found.ids:
        raise InputError(
            f"--output={output} is not {found.source}, reduced in this way; delete it or choose "
            "another --output"
        )


def _reduced(found: LocalFeatureSet, reduction: Whitening) -> Iterator[tuple[str, LocalFeatures]]:
    for id_, features in zip(found.ids, found, strict=True):
        rows = reduction.apply(features.descriptors)
        yield id_, dataclasses.replace(features, descriptors=rows)
