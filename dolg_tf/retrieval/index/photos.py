"""Photos described for an index: queries, and its own photos again."""

import dataclasses
import logging
import pathlib
import tempfile

import numpy as np

from dolg_tf.retrieval.descriptors import DescriptorSet, OtherOutput
from dolg_tf.retrieval.extract import stage
from dolg_tf.retrieval.extract.model import Describer, open_describer
from dolg_tf.retrieval.extract.photos import (
    Listing,
    PhotosConfig,
    TurnedRecords,
    list_named,
    list_photos,
)
from dolg_tf.retrieval.index.directory import SAME_MODEL, Index, check_same_space
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.making import LocalConfig, LocalMaking, making
from dolg_tf.retrieval.local.shards import beside
from dolg_tf.retrieval.meta import photo_roots, whitened_after
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


# --- queries ----------------------------------------------------


def describe_queries(
    index: Index, saved_model: str, images: pathlib.Path, max_bad: int, local: bool = False
) -> tuple[DescriptorSet, LocalFeatureSet | None]:
    """Describes photos in the same way as those of an index.

    Args:
      index: the index.
      saved_model: the model of its photos.
      images: a photo, a folder, or a CSV.
      max_bad: unreadable photos to tolerate.
      local: whether the second result is their local features, made like those of the index.

    Raises:
      InputError: when photos cannot be described so, or too many are unreadable.
    """
    describer, listing = _describer(saved_model, index), None
    how = _like_those_of(index, describer, saved_model) if local else None
    if images.is_file() and images.suffix.lower() != ".csv":
        upright = index.meta["upright"]
        listing = list_named([images.name], images.parent, images, upright=upright)
    with tempfile.TemporaryDirectory() as temporary:
        settings = _settings(index, images, pathlib.Path(temporary, "queries"), max_bad)
        listing = listing or _listed(index, settings)
        found = stage.describe_photos(settings, describer, listing=listing, local=how)
        features = feature_set.read(beside(settings.output)) if local else None
        # The files are deleted with the folder; those of local features stay as long as mapped.
        found = dataclasses.replace(found, descriptors=np.asarray(found.descriptors))
        return found, features


def _like_those_of(index: Index, describer: Describer, saved_model: str) -> LocalMaking:
    """Returns how local features are made like those of an index.

    Raises:
      InputError: when this model cannot make such.
    """
    meta, remedy = index.local.meta, "give the queries by --descriptors and --query_local"
    check_same_space(
        [(index.local.source, meta), (saved_model, {"model_hash": describer.model_hash})],
        ["model_hash"],
        remedy,
    )
    asked = LocalConfig(
        local=True,
        local_scales=tuple(meta["scales"] or ()),
        max_features=meta["max_features"],
        local_threshold=meta["threshold"],
        local_dtype=meta["dtype"],
    )
    how = making(asked, describer.local, saved_model, describer.model_hash)
    made = [(index.local.source, meta), (saved_model, how.meta())]
    check_same_space(made, ["kind", "reduction"], remedy)
    return how


def _listed(index: Index, settings: PhotosConfig) -> Listing:
    """Lists the queries."""
    try:
        return list_photos(settings)
    except TurnedRecords as error:
        # Its remedy is for an extraction; here, the index decides whether photos are turned.
        raise InputError(
            f"{error.told}, but those of {index.path} were not: build the records with "
            "--noupright, or extract the photos of the index with --upright and build it again"
        ) from error


def _describer(saved_model: str, index: Index) -> Describer:
    """Opens the model of an index, if it can describe photos as the index needs them."""
    if whitened_after(index.meta):
        raise InputError(
            f"{index.path} has descriptors that `dolg whiten apply` whitened: extract the photos, "
            "whiten them with `dolg whiten apply` too, and give --descriptors, not --images"
        )
    if index.meta["scales"] is None:
        raise InputError(
            f"{index.path} has imported descriptors, whose scales are unknown: import those of the "
            "queries in the same way, and give --descriptors, not --images"
        )
    describer = open_describer(saved_model, tuple(index.meta["scales"]))
    about = {key: getattr(describer, key) for key in SAME_MODEL}
    index.check_making(saved_model, about | {"scales": list(describer.scales)})
    return describer


def _settings(index: Index, images, output: pathlib.Path, max_bad: int) -> PhotosConfig:
    return PhotosConfig(
        images=str(images),
        max_side=index.meta["max_side"] or 0,
        upright=index.meta["upright"],
        max_bad=max_bad,
        output=str(output),
    )


# --- photos of the index -------------------------------------------------------------


def describe_anew(
    index: Index, saved_model: str, image_root: str, work: pathlib.Path, max_bad: int
) -> tuple[DescriptorSet, LocalFeatureSet | None]:
    """Describes the photos of an index with another model, with local features if it has such.

    Args:
      index: the index.
      saved_model: the other model.
      image_root: folder of the photos; empty: where they were described.
      work: folder that collects the descriptors, so that an interrupted run can be resumed.
      max_bad: unreadable photos to tolerate.

    Raises:
      InputError: when photos are missing or cannot be described as they were, or `work` belongs to
        another run.
    """
    path = index.path
    if index.meta["crop"]:
        raise InputError(f"{path}: its photos were cropped to boxes; extract and build it instead")
    if whitened_after(index.meta):
        raise InputError(
            f"{path} has descriptors that `dolg whiten apply` whitened, which a rebuild would "
            "undo; extract, whiten and build it instead"
        )
    describer, root = _new_describer(saved_model, index), photo_roots(index.meta, image_root)
    local = None if index.local is None else _anew(index, describer, saved_model)
    listing = list_named(index.ids, root, path, upright=index.meta["upright"])
    if not any(photo.path.is_file() for photo in listing.photos):
        raise InputError(
            f"{listing.image_root} has none of the {len(index)} photos of {path}: say with "
            "--image_root where they are; photos in TFRecords cannot be found again, so extract "
            "and build those instead"
        )
    try:
        settings = _settings(index, path, work, max_bad)
        found = stage.describe_photos(settings, describer, listing=listing, local=local)
    except OtherOutput as error:
        # Nobody chose an --output here.
        also = f" and {beside(work)}" if local else ""
        raise InputError(f"{work} {error.how}; delete {work}{also}") from error
    return found, feature_set.read(beside(work)) if local else None


def _anew(index: Index, describer: Describer, saved_model: str) -> LocalMaking:
    """Returns how another model makes local features, as many and stored as those of the index."""
    meta = index.local.meta
    most = LocalConfig.max_features if meta["max_features"] is None else meta["max_features"]
    asked = LocalConfig(local=True, max_features=most, local_dtype=meta["dtype"])
    how = making(asked, describer.local, saved_model, describer.model_hash)
    if meta["reduction"] is not None and how.reduction is None:
        log.warning(
            "%s: its local features were reduced to %d numbers, those of %s are not; reduce them "
            "in the model, by `dolg export --local_reduction`",
            *(index.path, meta["dimensions"], saved_model),
        )
    return how


def _new_describer(saved_model: str, index: Index) -> Describer:
    """Opens a model at its own scales, or at those of the index if its own are unknown."""
    try:
        describer, whose = open_describer(saved_model, ()), "the model"
    except InputError:
        scales = tuple(index.meta["scales"] or ())
        describer, whose = open_describer(saved_model, scales), "the index"
    told = ", ".join(f"{scale:.4g}" for scale in describer.scales)
    log.info("%s: photos are described at the scales of %s, %s", index.path, whose, told)
    return describer
