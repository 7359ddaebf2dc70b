"""Checkers of what search by local features leaves on disk: codebooks, ASMK indexes and scores."""

import pathlib
import zipfile

import numpy as np

from dolg_tf.pipelines.checks import short
from dolg_tf.retrieval import scores
from dolg_tf.retrieval.asmk import lists, words
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

_BLOCK = 1 << 24  # scores that are in memory at once


def is_codebook(path: pathlib.Path) -> bool:
    """Tells whether a file is an .npz with centroids, as far as its list of contents says."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "centroids.npy" in archive.namelist()
    except (*files.DAMAGED_ARRAYS, OSError):
        return False


def check_codebook(path: pathlib.Path) -> list[str]:
    """Checks a codebook: its words are finite."""
    found = words.read_codebook(path)
    count, width = found.centroids.shape
    return [f"{count:,} words of width {width}", f"model {short(found.space.get('model_hash'))}"]


def check_asmk(path: pathlib.Path) -> list[str]:
    """Checks an ASMK index: its checksums, and that each list has each photo at most once."""
    found = lists.Inverted.open(path)
    found.check_lists()
    meta = found.meta
    return [
        f"variant {meta['variant']}, {meta['photos']:,} photos, {meta['words']:,} words",
        f"{meta['entries']:,} entries",
        f"model {short(meta.get('model_hash'))}",
    ]


def check_scores(path: pathlib.Path) -> list[str]:
    """Checks scores: their checksums, names and counts, and that all are finite."""
    found = scores.read(path)
    rows = max(1, _BLOCK // max(1, len(found.ids)))
    for start in range(0, len(found.queries), rows):
        if not np.isfinite(found.scores[start : start + rows]).all():
            raise InputError(f"{path / 'scores.npy'}: not all are finite; search again")
    return [f"{len(found.queries):,} queries x {len(found.ids):,} photos"]
