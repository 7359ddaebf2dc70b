"""Whitening of sets of descriptors or local features: learned from one (`fit`), and applied.

The file that `fit` writes goes into a model as well: `--whitening` of `dolg export`.
"""

import dataclasses
import logging
import pathlib

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.whitening import choose, learn, local
from dolg_tf.retrieval.whitening.pairs import pairs_from_csv, pairs_from_labels
from dolg_tf.runtime.whitening import Whitening, load_whitening, write_whitening
from dolg_tf.stage import config, files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(NormConfig):
    """The descriptors and pairs from which a whitening is learned."""

    descriptors: str = option(
        "descriptor set (or .npy) of photos to learn from; not of those that are searched or "
        "scored, but with --groups of those that are searched; with --local a local feature set"
    )
    local: bool = option(
        "learn the reduction of local features, by PCA on a sample of those of all photos", False
    )
    output: str = option("whitening to write, an .npz")
    pairs_csv: str = option(
        "supervised whitening from a CSV with the columns query and positive: two photos of the "
        "same landmark; empty: none",
        "",
    )
    labels_csv: str = option(
        "supervised whitening from a CSV with the columns path (or id) and landmark: each photo "
        "is paired with the landmark's next one; empty: none. Without either CSV or --groups it is "
        "PCA",
        "",
    )
    groups: bool = option(
        "whitening without labels: from groups of like photos, most likely of one place each, that "
        "the photos form by themselves; refused where they do not",
        False,
    )
    dimensions: int = option(
        "length of the whitened descriptors, at most the original length; 0: the number of "
        "directions in which they vary, with --groups at most 512, with --local at most 128",
        0,
    )
    power: float = option(
        "of PCA whitening: 1 gives all directions equal variance, 0 keeps their variances", 1.0
    )
    overwrite: bool = option("replace an existing output", False)

    def __post_init__(self):
        config.at_least(self, dimensions=0)
        if bool(self.pairs_csv) + bool(self.labels_csv) + self.groups > 1:
            raise InputError("give one of --pairs_csv, --labels_csv and --groups")
        for name in ("pairs_csv", "labels_csv", "groups", "normalize"):
            if self.local and (value := getattr(self, name)):
                raise InputError(f"--{name}={value} is not for --local, which learns by PCA alone")
        if not 0 <= self.power <= 1:
            raise InputError(f"--power={self.power} must be from 0 to 1")
        if self.power != 1 and (self.pairs_csv or self.labels_csv or self.groups):
            raise InputError(f"--power={self.power} is for PCA; other whitenings have none")
        if not self.output.endswith(".npz"):
            raise InputError(f"--output={self.output} must end in .npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyConfig(NormConfig):
    """Which descriptors are whitened, and how."""

    descriptors: str = option("descriptor set to whiten; with --local a local feature set")
    local: bool = option("reduce local features, by an .npz of `fit --local`", False)
    whitening: str = option(".npz that `fit` wrote")
    output: str = option("set (a directory) to write")

    def __post_init__(self):
        if self.local and self.normalize:
            raise InputError("--normalize is for descriptors; local features are of unit norm")


def _refuse_whitened(photos: DescriptorSet) -> None:
    if photos.meta.get("whitening") is not None:
        raise InputError(
            f"{photos.source} is whitened already, with {photos.meta['whitening']}; give the "
            "original set"
        )


def fit(settings: FitConfig) -> None:
    """Learns a whitening: descriptor set in, .npz out; with --local from a local feature set.

    Raises:
      InputError: when the descriptors are too few, or whitened already.
    """
    files.check_output(settings.output, settings.overwrite)
    if settings.local:
        local.fit(settings.descriptors, settings.output, settings.dimensions, settings.power)
        return
    photos = descriptors.read(settings.descriptors, settings.normalize)
    _refuse_whitened(photos)
    rows = photos.descriptors
    if settings.pairs_csv or settings.labels_csv:
        if settings.pairs_csv:
            pairs = pairs_from_csv(settings.pairs_csv, photos)
        else:
            pairs = pairs_from_labels(settings.labels_csv, photos)
        mean, projection = learn.supervised(rows, *pairs, settings.dimensions)
    elif settings.groups:
        mean, projection = _by_groups(photos, settings.dimensions)
    else:
        mean, projection = learn.pca(rows, settings.dimensions, settings.power)
    write_whitening(settings.output, mean, projection, photos.meta.get("model_hash", ""))
    log.info(
        "%s: from %d descriptors, length %d to %d", settings.output, *rows.shape, len(projection.T)
    )


def _by_groups(photos: DescriptorSet, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and projection, and says from which groups.

    Raises:
      InputError: when the photos form none to learn from.
    """
    adapted = choose.adapt(photos.descriptors, dimensions)
    found = adapted.grouping
    if not found.passes:
        raise InputError(
            f"{photos.source}: no whitening by groups ({found.reason}); search these descriptors "
            "as they are"
        )
    log.info(
        "%s: %d groups of %d of %d photos, the largest of %d, estimated purity %.2f, threshold "
        "%.3f, shrinkage %.2f; %s",
        *(photos.source, found.groups, found.grouped, len(photos), found.largest, found.purity),
        *(found.threshold, adapted.shrinkage, found.reason),
    )
    return adapted.mean, adapted.projection


class WhitenedRows:
    """Rows that are whitened when read: float32, unit norm.

    Args:
      photos: (N, D) descriptors with ids.
      whitening: for descriptors of length D.
    """

    ndim = 2

    def __init__(self, photos: DescriptorSet, whitening: Whitening):
        self._photos, self._whitening = photos, whitening
        self.shape = (len(photos), whitening.projection.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> np.ndarray:
        """Returns the rows of a slice.

        Raises:
          InputError: when whitening leaves nothing of a descriptor.
        """
        rows = (self._photos.descriptors[key] - self._whitening.mean) @ self._whitening.projection
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        if not (norms > 1e-6).all():
            row = (key.start or 0) + int(np.flatnonzero(~(norms[:, 0] > 1e-6))[0])
            raise InputError(
                f"{self._photos.source}: whitening leaves nothing of {self._photos.ids[row]!r}, "
                "which equals the mean; learn it from more photos"
            )
        rows /= norms
        return rows


def apply(settings: ApplyConfig) -> None:
    """Whitens a descriptor set: set and .npz in, set out; its meta.json names the whitening.

    Sets can only be searched and scored together if the same whitening was applied to both.

    Raises:
      InputError: when the whitening is for descriptors of another model or length, the set is
        whitened already, or something else is at the output.
    """
    if settings.local:
        local.apply(settings.descriptors, settings.whitening, settings.output)
        return
    photos = descriptors.read(settings.descriptors, settings.normalize)
    if photos.ids is None:
        raise InputError(
            f"--descriptors={settings.descriptors}: an .npy cannot record its whitening; "
            "give a descriptor set"
        )
    _refuse_whitened(photos)
    whitening = load_whitening(settings.whitening, photos.descriptors.shape[1])
    whitening.check_model(settings.whitening, photos.source, photos.meta["model_hash"])
    meta = photos.meta | {"whitening": whitening.sha256}
    kept = descriptors.finished(settings.output, meta)
    if kept is not None and kept.ids == photos.ids:
        log.info("%s: kept, it is up to date", settings.output)
        return
    if kept is not None:
        raise InputError(
            f"--output={settings.output} holds other photos; delete it or choose another --output"
        )
    if pathlib.Path(settings.output, descriptors.UNFINISHED).is_dir():
        raise InputError(
            f"--output={settings.output} is an unfinished extraction; finish it, delete it or "
            "choose another --output"
        )
    rows = WhitenedRows(photos, whitening)
    descriptors.write(settings.output, DescriptorSet(photos.ids, rows, meta))
    log.info("%s: %d descriptors of length %d", settings.output, *rows.shape)
