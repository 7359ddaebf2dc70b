"""The search is adapted to the photos: a whitening, places and a threshold, from the photos alone.

`searched` holds them with the index, and is replaced as a whole. It is learned again when a tenth
of the photos have changed; until then new photos are whitened as the others.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo.collection import Expansion, Searchable, Threshold, places
from dolg_tf.pipelines.own_photos import threshold
from dolg_tf.pipelines.own_photos.journal import Entry
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.rows import Reordered
from dolg_tf.retrieval.whitening import choose
from dolg_tf.retrieval.whitening.choose import Adapted, Grouping
from dolg_tf.retrieval.whitening.groups import LEAST, NONE
from dolg_tf.retrieval.whitening.stages import WhitenedRows
from dolg_tf.runtime.whitening import Whitening, load_whitening, write_whitening
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_CHANGED = 0.1  # share of changed photos from which it is learned again
# It raises mAP by 1 to 2 where the search is adapted, see docs/quality.md.
_EXPANSION = Expansion(photos=3, alpha=3.0)
_ABOUT, _WHITENING = "about.json", "whitening.npz"
_GROUPS, _PHOTOS, _LEARNED = "groups.npy", "photos.npy", "learned.npy"


@dataclasses.dataclass(frozen=True)
class Searched:
    """What is searched.

    Attributes:
      index: of all photos, by id.
      whitening: of their descriptors; None: they are searched as the network gives them.
      labels: int64 (N,), the place of each photo, `NONE` for none.
      photos: uint64 (N,): what each photo's file holds, by 64 bits of its SHA-256.
      learned: uint64: those that it was learned from.
      words: what was chosen and why, for people.
      images: of the descriptor set.
    """

    index: Index
    whitening: Whitening | None
    labels: np.ndarray
    photos: np.ndarray
    learned: np.ndarray
    words: str
    images: str

    @functools.cached_property
    def searchable(self) -> Searchable:
        """The photos as the page and the terminal search them."""
        return dataclasses.replace(
            _searchable(self.index.ids, self.index.descriptors, self.whitening),
            places=places(self.index.descriptors, self.labels),
            threshold=_threshold(self.index.meta["calibration"]),
            note=self.words,
        )


def _searchable(ids: Sequence[str], rows, whitening: Whitening | None) -> Searchable:
    if whitening is None:
        return Searchable(ids, rows)
    return Searchable(ids, rows, whitening.apply, expansion=_EXPANSION)


def searchable_so_far(ids: tuple[str, ...], raw, whitening: Whitening | None) -> Searchable:
    """Returns photos as they can be searched while others are described.

    Args:
      ids: of the photos.
      raw: (N, C) their descriptors as the network gives them, `Rows` or an array.
      whitening: learned before; None: there is none yet.
    """
    photos = DescriptorSet(ids, raw)
    rows = raw if whitening is None else WhitenedRows(photos, whitening)
    return dataclasses.replace(_searchable(ids, rows, whitening), raw=raw)


def _threshold(calibration: dict | None) -> Threshold | None:
    if calibration is None:
        return None
    pairs, warning = calibration.get("pairs", {}), calibration.get("warning", "")
    low, high = calibration.get("precision_interval", (None, None))
    return Threshold(
        calibration["threshold"],
        estimated=bool(calibration.get("estimated")),
        low=low,
        high=high,
        pairs=int(pairs.get("same", 0)),
        precision=calibration.get("precision"),
        warning=f"{warning[:1].upper()}{warning[1:]}." if warning else "",
    )


# --- on disk -------------------------------------------------------------------------


def read(path: pathlib.Path) -> Searched | None:
    """Returns what is searched; None: nothing was written, or it is damaged."""
    if not workshop.recover(path / _ABOUT):
        return None
    try:
        about = files.read_json(path / _ABOUT, FORMAT_VERSION)
        index = Index.open(path / "index")
        whitening = None
        if about["width"]:
            whitening = load_whitening(path / _WHITENING, about["width"])
        arrays = [np.load(path / name) for name in (_GROUPS, _PHOTOS, _LEARNED)]
        if any(array.shape != (len(index),) for array in arrays[:2]):
            raise InputError("places of other photos")
        return Searched(index, whitening, *arrays, about["words"], about["images"])
    except (InputError, KeyError, TypeError, *files.DAMAGED_ARRAYS, OSError) as error:
        log.warning("%s: the search is adapted again: %s", path, error)
        return None


def update(
    path: pathlib.Path, photos: DescriptorSet, entries: dict[str, Entry], before: Searched | None
) -> Searched:
    """Brings what is searched in step with a descriptor set.

    Args:
      path: of the folder.
      photos: the set.
      entries: of its photos, by id.
      before: what is there.
    """
    if before is not None and before.images == photos.meta["images"]:
        return before
    now = _hashes(photos.ids, entries)
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        if before is None or _share(before.learned, now) >= _CHANGED:
            _learn(temporary, photos, now)
        else:
            _keep(temporary, photos, before, now)
        np.save(temporary / _PHOTOS, now)
    return read(path)


def _hashes(ids: tuple[str, ...], entries: dict[str, Entry]) -> np.ndarray:
    """Returns 64 bits of each photo's digest."""
    return np.array([int(entries[id_].digest[:16], 16) for id_ in ids], np.uint64)


def _share(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the share of photos that came or went."""
    changed = len(np.setdiff1d(now, before)), len(np.setdiff1d(before, now))
    return max(changed) / max(len(before), 1)


def _learn(folder: pathlib.Path, photos: DescriptorSet, now: np.ndarray) -> None:
    """Learns from all photos, and writes what is searched."""
    adapted = choose.adapt(photos.descriptors)
    rows = photos.descriptors
    if adapted.grouping.passes:
        rows = _whitened(folder, photos, adapted)
    np.save(folder / _LEARNED, now)
    calibration = threshold.estimate(photos, adapted)
    _write(folder, photos, rows, adapted.grouping.labels, words_of(adapted), calibration)


def _keep(folder: pathlib.Path, photos: DescriptorSet, before: Searched, now: np.ndarray) -> None:
    """Writes what is searched with what was learned before."""
    rows = photos.descriptors
    if before.whitening is not None:
        rows = _whitened(folder, photos, before.whitening)
    np.save(folder / _LEARNED, before.learned)
    # By what they hold: a name may stand for another photo than before.
    place_of = dict(zip(before.photos.tolist(), before.labels.tolist(), strict=True))
    labels = np.array([place_of.get(one, NONE) for one in now.tolist()], np.int64)
    new = np.flatnonzero(~np.isin(now, before.photos))
    if before.index.threshold is not None and len(new):
        labels[new] = _nearest_places(rows, labels, new, before.index.threshold)
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    labels = np.where((labels >= 0) & (sizes[labels] >= LEAST), labels, NONE)
    calibration = before.index.meta["calibration"]
    _write(folder, photos, rows, labels, before.words, calibration)


def _whitened(
    folder: pathlib.Path, photos: DescriptorSet, learned: Adapted | Whitening
) -> WhitenedRows:
    """Writes a whitening, and returns the rows as it makes them."""
    file = folder / _WHITENING
    write_whitening(file, learned.mean, learned.projection, photos.meta["model_hash"])
    return WhitenedRows(photos, load_whitening(file, len(learned.mean)))


def _nearest_places(rows, labels: np.ndarray, new: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the places of new photos: that of the nearest other one, if it passes."""
    grouped = np.flatnonzero(labels >= 0)
    if not len(grouped):
        return labels[new]
    best = search(Reordered(rows, grouped), np.asarray(rows[new], np.float32), 1)
    near = best.scores[:, 0] >= threshold
    return np.where(near, labels[grouped[best.rows[:, 0]]], NONE)


def _write(
    folder: pathlib.Path,
    photos: DescriptorSet,
    rows,
    labels: np.ndarray,
    words: str,
    calibration: dict | None,
) -> None:
    np.save(folder / _GROUPS, labels)
    meta, whitened = directory.flat_meta(photos.meta, rows.shape[1], calibration), False
    if (folder / _WHITENING).exists():
        meta["whitening"], whitened = files.sha256(folder / _WHITENING), True
    write = functools.partial(directory.write_flat, rows)
    directory.write(folder / "index", photos.ids, meta, write)
    about = {
        "format_version": FORMAT_VERSION,
        "images": photos.meta["images"],
        "width": photos.descriptors.shape[1] if whitened else 0,
        "words": words,
    }
    files.write_json(folder / _ABOUT, about)


# --- in words ------------------------------------------------------------------------


def words_of(adapted: Adapted) -> str:
    """Returns what was chosen and why, for people."""
    found: Grouping = adapted.grouping
    if not found.passes:
        return (
            "The search uses the network's descriptors as they are: the photos form no groups that "
            f"most likely show one place each ({found.reason})."
        )
    return (
        f"The search is adapted to your photos: {found.grouped} of {len(found.labels)} form "
        f"{found.groups} groups that most likely show one place each, the largest of "
        f"{found.largest} photos; by estimate {found.purity:.0%} of their links are right. What "
        "varies within a place counts less from now on."
    )
