"""Photos become descriptors: a `serving` SavedModel in, a descriptor set out."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from dolg_tf import config, files, progress
from dolg_tf.config import InputError, option
from dolg_tf.retrieval import batches, decoding, descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.photos import Listing, PhotosConfig, list_photos

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(PhotosConfig):
    """Which photos go through which network."""

    saved_model: str = option("SavedModel directory of mode serving")
    scales: tuple[float, ...] = option(
        "scales of the photo whose descriptors are averaged; empty: the model's own", ()
    )

    def __post_init__(self):
        super().__post_init__()
        if any(not 0 < scale < float("inf") for scale in self.scales):
            raise InputError(f"--scales={','.join(map(str, self.scales))}: each must be above 0")


def _model_info(saved_model: pathlib.Path) -> dict:
    """Returns `assets.extra/dolg.json` of a SavedModel, without loading TensorFlow."""
    if not (saved_model / "saved_model.pb").is_file():
        raise InputError(
            f"--saved_model={saved_model}: no SavedModel there; export/export_saved_model.py "
            "writes one"
        )
    path = saved_model / "assets.extra" / "dolg.json"
    info = files.read_json(path, 1)
    for key in ("scales", "weights_sha256"):
        if not info.get(key):
            raise InputError(f"{path}: no {key!r}; export the model again")
    return info


def load_describe(
    saved_model: pathlib.Path, scales: tuple[float, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """Loads the signature `images` of a SavedModel.

    Returns:
      uint8 RGB (B, H, W, 3) -> float32 (B, D), rows of unit L2 norm.
    """
    import tensorflow as tf

    model = tf.saved_model.load(str(saved_model))
    if "images" not in model.signatures:
        raise InputError(
            f"--saved_model={saved_model} has no signature 'images', only "
            f"{sorted(model.signatures)}; export/export_saved_model.py writes it"
        )
    scales = tf.constant(scales, tf.float32)

    def describe(images):
        # Through `model`: a signature alone does not keep the variables alive.
        call = model.signatures["images"]
        return call(images=tf.constant(images), scales=scales)["descriptors"].numpy()

    return describe


class _BadPhotos:
    """Counts unreadable photos and stops the work when there are too many."""

    def __init__(self, most: int):
        self.found = []
        self._most = most

    def add(self, id_: str, reason: str) -> None:
        self.found.append({"id": id_, "reason": reason})
        log.warning("unreadable photo %s", reason)
        if len(self.found) > self._most:
            raise InputError(
                f"{len(self.found)} unreadable photos, --max_bad={self._most} are tolerated; the "
                f"last is {reason}; mend or remove them, or raise --max_bad"
            )


def _readable(listing: Listing, max_side: int, bad: _BadPhotos) -> Iterator:
    """Yields (row, uint8 (H, W, 3)) of the photos that can be read."""
    images = decoding.decode_ahead(listing.photos, max_side)
    images = progress.track(images, len(listing.photos), "extract")
    for row, image in enumerate(images):
        if isinstance(image, str):
            bad.add(listing.photos[row].id, image)
        else:
            yield row, image


def describe_photos(
    settings: PhotosConfig,
    model_hash: str,
    scales: tuple[float, ...],
    load: Callable[[], Callable[[np.ndarray], np.ndarray]],
) -> DescriptorSet:
    """Describes the photos that `settings` lists and writes the set, unless it is there already.

    Args:
      settings: photos and output.
      model_hash: tells this way of describing from every other.
      scales: for the meta data.
      load: returns what maps uint8 (B, H, W, 3) to float32 (B, D); called when it is needed.

    Raises:
      InputError: when the output was made with another setting, or too many photos are bad.
    """
    listing = list_photos(settings)
    meta = {
        "model_hash": model_hash,
        "scales": list(scales),
        "crop": listing.crop,
        "max_side": settings.max_side,
        "whitening": None,
        "images": listing.fingerprint(),
    }
    kept = descriptors.finished(settings.output, meta)
    if kept is not None:
        log.info("%s: kept, its %d descriptors are up to date", settings.output, len(kept))
        return kept
    found = _describe(settings, listing, meta, load)
    descriptors.write(settings.output, found)
    return descriptors.read(settings.output)


def _describe(settings: PhotosConfig, listing: Listing, meta: dict, load) -> DescriptorSet:
    """Reads and describes the photos of a listing."""
    # Both before the model is loaded: a wrong path answers at once, not after hours.
    pathlib.Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
    missing = [photo.path for photo in listing.photos if not photo.path.exists()]
    if len(missing) > settings.max_bad:
        raise InputError(
            f"{len(missing)} of {len(listing.photos)} photos are not there, the first is "
            f"{missing[0]}; check --image_root, or raise --max_bad={settings.max_bad}"
        )
    bad, start = _BadPhotos(settings.max_bad), time.monotonic()
    images = _readable(listing, settings.max_side, bad)
    rows, done = batches.describe_batches(images, load(), len(listing.photos), settings.batch_size)
    if not done.any():
        raise InputError(f"--images={settings.images}: not one photo could be read")
    ids = tuple(photo.id for photo, there in zip(listing.photos, done, strict=True) if there)
    took = progress.format_seconds(time.monotonic() - start)
    counts = f"{len(ids)} photos described, {len(bad.found)} bad"
    log.info("%s: %s, in %s", settings.output, counts, took)
    meta = {**meta, "image_root": str(listing.image_root), "bad": bad.found}
    return DescriptorSet(ids, rows if done.all() else rows[done], meta)


def extract(settings: ExtractConfig) -> DescriptorSet:
    """Extracts the descriptors of photos: a SavedModel and photos in, a descriptor set out.

    Queries of a ground truth are cut to their boxes (as the benchmark asks), index photos are
    not. The order of the set is that of the list, whatever the batches.

    Raises:
      InputError: when the model is no `serving` SavedModel, the photos cannot be listed, too
        many are unreadable, or the output was made with another model or setting.
    """
    saved_model = pathlib.Path(settings.saved_model)
    info = _model_info(saved_model)
    scales = settings.scales or tuple(info["scales"])
    return describe_photos(
        settings, info["weights_sha256"], scales, lambda: load_describe(saved_model, scales)
    )


if __name__ == "__main__":
    config.main(extract, ExtractConfig)
