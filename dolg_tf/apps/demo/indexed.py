"""An index and the model that described its photos, as the page needs them."""

import dataclasses
import logging
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo.collection import Progress, Searchable, Threshold, places
from dolg_tf.data.photo_folders import Finder
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import LoadedModel, load_model, open_describer
from dolg_tf.retrieval.index.directory import SAME_MODEL, Index
from dolg_tf.retrieval.index.reranking import Chosen
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet, packed, unpacked
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.meta import photo_roots, whitened_after
from dolg_tf.retrieval.rerank.methods import RerankConfig, as_fitted
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.retrieval.whitening.choose import find_groups
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_MOST_SIDE = 2048  # longest side that is described, in pixels: more takes too long for a page
_IN_MEMORY = 2**30  # bytes of descriptors that are read once, and not again for each query
_MOST_GROUPED = 20_000  # photos among which places are looked for: each is compared with each
# Of two photos that share a tile: a trained network draws other photos of a place closer together.
_ALIKE = 0.98
_LOOKED_FOR = 20  # first photos of the index; one of them should be on disk
_WARM_UP = (384, 512)  # rows and columns


class IndexedPhotos:
    """A `Collection` whose photos were all described before.

    Args:
      saved_model: the one that described the photos of the index.
      index: a directory.
      image_root: folder of the photos of the index; empty: where they were described.
      max_side: photos are shrunk to this longest side before they are described, in pixels; 0: as
        those of the index were. At most to the side of those, and to 2,048, above which an answer
        would take too long.

    Raises:
      InputError: when the index belongs to another model, or was not described by a model alone.
    """

    def __init__(self, saved_model: files.Path, index: files.Path, image_root: str, max_side: int):
        self._index = Index.open(index)
        meta = self._index.meta
        _check_describable(self._index)
        self.scales = tuple(meta["scales"])
        describer = open_describer(saved_model, self.scales)
        about = {key: getattr(describer, key) for key in SAME_MODEL}
        self._index.check_making(str(saved_model), about | {"scales": list(describer.scales)})
        self._root = photo_roots(meta, image_root)
        self.title = str(index)
        sides = filter(None, (max_side, meta["max_side"], _MOST_SIDE))
        self.how = dataclasses.replace(Preparation.of(meta), max_side=min(sides))
        self._finder = Finder(self._root)  # reads a folder once, as the index is read once
        self._saved_model = saved_model
        self._doing = ""
        # One photo at a time: the model uses all cores, and its memory stays that of one.
        self._turn = threading.Lock()

    def load(self) -> None:
        """Loads the model and answers once, so that the first visitor does not wait for it."""
        self._model = load_model(self._saved_model, self.scales)
        self.has_maps, self.has_local = self._model.has_maps, self._model.has_local
        self._kept = _comparable(self._index, self._model)
        rows, meta = self._index.descriptors, self._index.meta
        if rows is not None and 4 * rows.shape[0] * rows.shape[1] <= _IN_MEMORY:
            rows = rows[:].copy()
        threshold, calibration = None, meta["calibration"]
        if calibration is not None:
            precision = calibration.get("precision")
            fewest = self._index.min_inliers
            threshold = Threshold(calibration["threshold"], precision=precision, inliers=fewest)
        search = self._index.search if rows is None else None
        ids = self._index.ids
        self._now = Searchable(
            ids, rows, threshold=threshold, alike=_ALIKE, search=search, **self._geometry()
        )
        self.describe(np.zeros((*_WARM_UP, 3), np.uint8), self.scales)
        if rows is not None and len(ids) <= _MOST_GROUPED:
            self._doing = "Looking for places"
            threading.Thread(target=self._look_for_places, daemon=True).start()

    def _geometry(self) -> dict:
        """Returns what `Searchable` says of local features, ordered as `dolg calibrate` fitted."""
        if self._kept is None:
            return {}
        found = {"local": Chosen(self._kept, self._kept.rows_of(self._index.ids)).__getitem__}
        fitted = (self._index.meta["calibration"] or {}).get("geometric")
        if fitted is None:
            return found
        settings = RerankConfig(rerank=fitted["rerank"])
        settings, verification = as_fitted(settings, VerifyConfig(), fitted)
        return found | {"geometric": settings, "verify": verification}

    def _look_for_places(self) -> None:
        rows = self._now.rows
        try:
            found = places(rows, find_groups(rows).labels)
            self._now = dataclasses.replace(self._now, places=found)
        except (InputError, ValueError, MemoryError) as error:  # the page works without
            log.warning("no places were looked for (%.200s)", error)
        finally:
            self._doing = ""

    def searchable(self) -> Searchable:
        """Returns the index."""
        return self._now

    def progress(self) -> Progress:
        """Returns that all is described."""
        return Progress(len(self._index), len(self._index), doing=self._doing)

    def describe(self, image: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns the descriptor of uint8 RGB (H, W, 3), float32 (1, D)."""
        with self._turn:
            return self._model.describe(image[None], scales)

    def attention(self, image: np.ndarray) -> np.ndarray:
        """Returns the attention map of uint8 RGB (H, W, 3), float32 (h, w)."""
        with self._turn:
            return self._model.maps(image)["attention"]

    def local(self, image: np.ndarray) -> LocalFeatures:
        """Returns the local features of uint8 RGB (H, W, 3), made as those of the index."""
        with self._turn:
            if self._kept is None:
                return self._model.local_of(image)
            made = self._kept.meta
            scales, most, least = made["scales"], made["max_features"], made["threshold"]
            found = self._model.local_of(image, scales, most, least)
        rows = packed(found.descriptors, made["dtype"])
        rows = unpacked(rows, made["dtype"], made["dimensions"])
        return dataclasses.replace(found, descriptors=rows)

    def file(self, id_: str) -> pathlib.Path | None:
        """Returns the file of a photo.

        None: it is missing, in a folder elsewhere, or may be one of several.
        """
        try:
            # A folder may not lead elsewhere, but a photo may be a link, as extraction takes it.
            file = pathlib.Path(self._finder.find(id_, self._index.path)[1])
            return file if file.is_file() else None
        except (ValueError, OSError):  # a zero byte, too, or a folder that cannot be read
            return None

    def check_photos(self) -> None:
        """Warns when none of the first photos is on disk."""
        if all(self.file(id_) is None for id_ in self._index.ids[:_LOOKED_FOR]):
            log.warning(
                "%s holds none of the first photos of the index: it can be searched, but its "
                "photos are not shown; say where they are with --image_root",
                " or ".join(self._root.values()) if isinstance(self._root, dict) else self._root,
            )


def _check_describable(index: Index) -> None:
    """Makes sure that a model alone can describe photos as those of an index were described.

    Raises:
      InputError: when it cannot.
    """
    if whitened_after(index.meta):
        raise InputError(
            f"--index={index.path} holds descriptors that `dolg whiten apply` whitened, but the "
            "page describes photos by the model alone; export it with --whitening, extract, and "
            "build the index again"
        )
    if index.meta["scales"] is None:
        raise InputError(
            f"--index={index.path} holds imported descriptors, whose scales are unknown; extract "
            "its photos with the model and build it again"
        )


def _comparable(index: Index, model: LoadedModel) -> LocalFeatureSet | None:
    """Returns the local features of an index, if the model gives a visitor's photo the like."""
    found = index.local
    if found is None or not model.has_local:
        return None
    about = model.about.local or {"kind": found.meta["kind"]}
    own = {
        "model_hash": model.about.model_hash,
        "kind": about["kind"],
        "reduction": (about.get("reduction") or {}).get("sha256"),
    }
    for key, value in own.items():
        if found.meta[key] != value:
            log.warning(
                "%s: its local features have %s %.80r, the model gives %.80r: answers are not "
                "ordered by geometric verification; extract them with this model as it is",
                *(index.path, key, found.meta[key], value),
            )
            return None
    return found
