"""Photos become descriptors: a SavedModel in, a descriptor set out.

    dolg extract --saved_model=MODEL --images=PHOTOS --output=SET

The same command resumes an interrupted run. Several processes, or machines with a shared disk,
split the work with --shard=0/2 and --shard=1/2.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import ahead, batches
from dolg_tf.retrieval.extract import shards as unfinished
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import Describe, Describer, open_describer
from dolg_tf.retrieval.extract.photos import Listing, Photo, PhotosConfig, list_photos
from dolg_tf.retrieval.extract.shards import UnfinishedSet
from dolg_tf.retrieval.local import making
from dolg_tf.retrieval.local import shards as local_shards
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.local.making import LocalConfig, LocalMaking
from dolg_tf.retrieval.local.writing import SetWriter
from dolg_tf.retrieval.meta import DTYPES
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

_NO_LOCAL = LocalConfig()
Find = Callable[[np.ndarray, tuple[int, int]], LocalFeatures]
"""uint8 RGB (H, W, 3), and its size before it was shrunk -> features in pixels of that size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(PhotosConfig):
    """Which photos are described, and by which network."""

    saved_model: str = option("SavedModel directory of mode serving or delg")
    scales: tuple[float, ...] = option(
        "scales of a photo, whose descriptors are averaged; empty: those of the export", ()
    )
    dtype: str = option("number format of the stored descriptors", "float32", choices=DTYPES)
    shard: str = option(
        f"i/n, i from 0: describe shards i, i + n, i + 2 n, ... of {unfinished.SHARD_PHOTOS} "
        f"photos each, with local features of {unfinished.LOCAL_SHARD_PHOTOS}; n processes share "
        "one --output",
        "0/1",
    )

    def __post_init__(self):
        super().__post_init__()
        if any(not 0 < scale < float("inf") for scale in self.scales):
            raise InputError(f"--scales={','.join(map(str, self.scales))}: each must be positive")
        part, parts = self.part
        if part >= parts:
            raise InputError(
                f"--shard={self.shard}: the first number must be from 0 to {parts - 1}"
            )

    @property
    def part(self) -> tuple[int, int]:
        """The part of the shards to do, from 0, and the number of parts."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard, re.ASCII)
        if found is None:
            raise InputError(f"--shard={self.shard} must be i/n, such as 0/4")
        return int(found[1]), int(found[2])


class _BadPhotos:
    """The unreadable photos of a shard; stops the work when there are too many."""

    def __init__(self, before: list[dict], most: int):
        self._all, self._most = before, most
        self._first = len(before)
        self._check()

    def add(self, id_: str, reason: str) -> None:
        log.warning("unreadable photo %s", reason)
        self._all.append(unfinished.bad_photo(id_, reason))
        self._check()

    def _check(self) -> None:
        if len(self._all) > self._most:
            raise unfinished.too_many_bad(self._all, self._most)

    def take(self) -> list[dict]:
        """Returns what was added since the last call."""
        taken, self._first = self._all[self._first :], len(self._all)
        return taken


def describe_photos(
    settings: PhotosConfig,
    describer: Describer,
    dtype: str = "float32",
    part: tuple[int, int] = (0, 1),
    do_part: Callable | None = None,
    listing: Listing | None = None,
    local: LocalMaking | None = None,
) -> DescriptorSet | None:
    """Describes the photos that `settings` lists and writes the set, unless it exists already.

    Args:
      settings: photos and output.
      describer: describes the photos.
      dtype: of the stored descriptors.
      part: the shards to do, (i, n): i, i + n, i + 2 n, ...
      do_part: replaces `_do_part` in writing these shards.
      listing: the photos; None: those that `settings` lists.
      local: how their local features are made, whose set is written beside it; None: they have
        none.

    Returns:
      The set; None when this part is done but others are not.

    Raises:
      InputError: when the output was made with other settings, too many photos are bad, or
        another process is working on the same part.
    """
    listing = listing or list_photos(settings)
    sizes = listing.sizes()
    prints = listing.fingerprints(sizes, unfinished.shard_photos(bool(local)))
    meta = _meta(settings, listing, describer, dtype)
    of_local = local and meta | local.meta()
    kept = _finished(settings.output, meta, of_local, prints.images)
    if kept is not None:
        unfinished.remove(settings.output)
        log.info("%s: kept, its %d descriptors are up to date", settings.output, len(kept))
        return kept
    _check_there(listing, sizes, settings)
    work = UnfinishedSet(settings.output, meta, listing, prints, of_local)
    with work.part(*part):
        if local:
            _do_part(work, settings, listing, describer.load_both, part, local)
        else:
            (do_part or _do_part)(work, settings, listing, describer.load, part)
    if not work.finish(settings.max_bad):
        log.info("%s: part %d/%d is done, but others are not", settings.output, *part)
        return None
    found = descriptors.read(settings.output)
    bad = len(found.meta["bad"])
    log.info("%s: %d photos described, %d bad", settings.output, len(found), bad)
    if local:
        local_shards.say(local_shards.finished(settings.output, of_local))
    return found


def _finished(output: str, meta: dict, of_local: dict | None, images: str) -> DescriptorSet | None:
    """Returns the set that was made so already, with its local set if there is to be one.

    Raises:
      InputError: when one was made in another way, or the descriptor set without the local one.
    """
    kept = descriptors.finished(output, meta | {"images": images})
    if of_local:
        beside = local_shards.finished(output, of_local | {"images": images})
        if kept is not None and beside is None:
            raise descriptors.OtherOutput(
                output, "was made without local features", "choose another --output, or delete it"
            )
    return kept


def _meta(settings: PhotosConfig, listing: Listing, describer: Describer, dtype: str) -> dict:
    """Returns what all shards of a set share."""
    meta = {
        "model_hash": describer.model_hash,
        "scales": list(describer.scales),
        "crop": listing.crop,
        "upright": listing.upright,
        "max_side": settings.max_side,
        "dtype": dtype,
        "whitening": describer.whitening,
    }
    if listing.crop:
        meta |= {"query_scale": settings.query_scale, "box_rounding": settings.box_rounding}
    return meta


def _check_there(listing: Listing, sizes: np.ndarray, settings: PhotosConfig) -> None:
    """Counts what is bad at sight before the model is loaded, so that wrong paths fail at once."""
    faults = [
        unfinished.bad_photo(photo.id, f"{photo.where}: {photo.fault}")
        for photo in listing.photos
        if photo.fault
    ]
    if len(faults) > settings.max_bad:
        raise unfinished.too_many_bad(faults, settings.max_bad)
    missing = np.flatnonzero(sizes < 0)
    if len(missing) > settings.max_bad:
        raise InputError(
            f"{len(missing)} of {len(sizes)} photos are missing, the first is "
            f"{listing.photos[missing[0]].where}; check --image_root, or raise "
            f"--max_bad={settings.max_bad}"
        )


def _do_part(
    work: UnfinishedSet,
    settings: PhotosConfig,
    listing: Listing,
    load: Callable,
    part: tuple[int, int],
    local: LocalMaking | None = None,
) -> None:
    """Describes and writes the unfinished shards of a part; see `Describer` for `load`."""
    done = work.done()
    todo = [shard for shard in range(part[0], work.count, part[1]) if shard not in done]
    if not todo:
        return
    if done:
        log.info("%s: %d of %d shards are done already", work.path, len(done), work.count)
    bad = _BadPhotos([one for shard in done.values() for one in shard.bad], settings.max_bad)
    photos = {shard: listing.photos[slice(*work.span(shard))] for shard in todo}
    start = time.monotonic()
    try:
        describe, find = load() if local else (load(), None)
        find = local and functools.partial(local.features, find)
        _describe_shards(work, photos, settings, describe, find, bad)
    except KeyboardInterrupt:
        count = len(work.done())
        log.info("%d of %d shards are done; run the same command again", count, work.count)
        raise
    took = progress.format_seconds(time.monotonic() - start)
    log.info("%s: %d of %d shards, in %s", work.path, len(todo), work.count, took)


def _describe_shards(
    work: UnfinishedSet,
    shards: dict[int, Sequence[Photo]],
    settings: PhotosConfig,
    describe: Describe,
    find: Find | None,
    bad: _BadPhotos,
) -> None:
    total = sum(len(photos) for photos in shards.values())
    # One stream for all shards: photos of the next are decoded while the last are described.
    all_photos = itertools.chain(*shards.values())
    decode = ahead.prepare_ahead if find else ahead.decode_ahead
    stream = decode(all_photos, Preparation.asked(settings))
    with contextlib.closing(stream):
        images = progress.track(stream, total, "extract")
        for shard, photos in shards.items():
            with work.writing_local(shard) as writer:
                readable = _readable(photos, images, bad)
                if find:
                    readable = _with_local(photos, readable, find, writer, bad)
                rows, there = batches.describe_batches(
                    readable,
                    describe,
                    len(photos),
                    settings.batch_size,
                    functools.partial(_too_large, photos, bad, writer),
                )
            work.write(shard, rows[there], bad.take())


def _readable(photos: Sequence[Photo], images: Iterator, bad: _BadPhotos) -> Iterator:
    """Yields (row, what was read) of the readable photos."""
    # Not strict: the images of other shards follow.
    for row, (photo, image) in enumerate(zip(photos, images, strict=False)):
        if isinstance(image, str):
            bad.add(photo.id, image)
        else:
            yield row, image


def _with_local(
    photos: Sequence[Photo], readable: Iterator, find: Find, writer: SetWriter, bad: _BadPhotos
) -> Iterator:
    """Yields (row, uint8 (H, W, 3)) of photos whose local features have been written."""
    for row, (image, size) in readable:
        try:
            writer.add(photos[row].id, find(image, size))
        except MemoryError:
            _too_large(photos, bad, None, row, batches.too_many_pixels(image))
            continue
        yield row, image
        del image  # not held while the next is awaited


def _too_large(
    photos: Sequence[Photo], bad: _BadPhotos, writer: SetWriter | None, row: int, reason: str
) -> None:
    if writer:
        writer.drop(photos[row].id)
    bad.add(photos[row].id, f"{photos[row].where}: {reason}")


def extract(settings: ExtractConfig, local: LocalConfig = _NO_LOCAL) -> DescriptorSet | None:
    """Extracts the descriptors of photos: a SavedModel and photos in, a descriptor set out.

    Queries of a ground truth are cropped to their boxes (as the benchmark asks), index photos are
    not. Your own photos are turned by their EXIF orientation, a benchmark's are not. The set is in
    the order of the list, whatever the batches. The same command resumes an interrupted run.

    With --local, the photos' local features go into OUTPUT.local, of which both sets or none are
    there.

    Returns:
      The set; None when --shard's part is done but others are not.

    Raises:
      InputError: when the model is not a SavedModel of mode `serving` or `delg`, the photos cannot
        be listed, too many are unreadable, or the output was made with another model or settings.
    """
    describer = open_describer(settings.saved_model, settings.scales)
    how = None
    if local.local:
        how = making.making(local, describer.local, settings.saved_model, describer.model_hash)
    return describe_photos(settings, describer, settings.dtype, settings.part, local=how)
