"""The inputs of a score on Revisited Oxford/Paris, and the protocol that goes with it."""

import dataclasses
import logging
import pathlib

import numpy as np

from dolg_tf.retrieval import descriptors, norms
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.meta import of_one_folder
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_PREPARED = "prepared.json"  # beside the ground truth, by `dolg prepare-revisited`
_PREPARED_VERSION = 1
NOT_CUT = "queries NOT cut to their boxes"

Descriptors = files.Path | DescriptorSet | Rows | np.ndarray
"""A descriptor set or an `.npy` (its path, or as it was read), or rows in a known order."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Descriptors of one task.

    Attributes:
      queries: float32 (Q, D), rows as `qimlist`.
      index: (N, D), rows as `imlist`.
      distractors: (M, D), of photos that match no query; M may be 0.
      protocol: the conditions of the scores; None for what an `.npy` does not say.
      image_root: folder of the index photos, as its set says; "": it does not.
      distractor_ids: of the rows of `distractors`; None: they have none.
    """

    queries: np.ndarray
    index: Rows | np.ndarray
    distractors: Rows | np.ndarray
    protocol: dict
    image_root: str = ""
    distractor_ids: tuple[str, ...] | None = None


def _read(found: Descriptors, name: str, normalize: bool, remedy: str) -> DescriptorSet:
    """Returns the set, with its rows as `Rows` of unit norm.

    Args:
      found: the set, its path, or its rows.
      name: what errors call rows that came without a path.
      normalize: whether rows are divided by their norms.
      remedy: see `descriptors.read`.
    """
    if isinstance(found, np.ndarray | Rows):
        found = DescriptorSet(None, found, {}, name)
    elif not isinstance(found, DescriptorSet):
        return descriptors.read(found, normalize, remedy)
    rows = descriptors.unit_rows(found.descriptors, found.source, normalize)
    return dataclasses.replace(found, descriptors=rows)


def read_inputs(
    task: GroundTruth,
    ground_truth: files.Path | None,
    queries: Descriptors,
    index: Descriptors,
    distractors: Descriptors | None = None,
    *,
    normalize: bool = False,
    remedy: str = norms.REMEDY,
) -> Inputs:
    """Reads the descriptors of a task; rows on disk stay there.

    Args:
      task: the ground truth.
      ground_truth: its file, beside which prepared.json may lie; None: it came from no file.
      queries, index, distractors, normalize: see `score.evaluate_revisited`.
      remedy: see `descriptors.read`.

    Raises:
      InputError: when a photo has no descriptor, the sets come from different models, or
        distractors are photos of the index.
    """
    sets = {
        "query": _read(queries, "the queries", normalize, remedy),
        "index": _read(index, "the index", normalize, remedy),
    }
    if sets["query"].ids is None and len(sets["query"]) != len(task.query_ids):
        raise InputError(
            f"{sets['query'].source} has {len(sets['query'])} rows for {len(task.query_ids)} "
            "queries"
        )
    own = sets["index"].select(task.index_ids)
    others = len(sets["index"]) - len(own)
    parts = []
    if sets["index"].ids is None:
        parts += _behind(sets["index"].descriptors, len(own))
    elif others:
        log.info(
            "%d photos of %s are not in the ground truth and not searched; to count them as "
            "distractors, extract them to a set of their own",
            others,
            sets["index"].source,
        )
    if distractors is not None:
        sets["distractor"] = _read(distractors, "the distractors", normalize, remedy)
        _check_not_in_index(sets["distractor"], sets["index"], task)
        parts.append(sets["distractor"].descriptors)
    # Scales may differ on purpose: the protocol states them, with a remark.
    made = map(directory.how_made, sets.values())
    directory.check_same_space(
        made, ("model_hash", "whitening", "width"), "extract all with one model"
    )
    more = Rows(parts) if parts else own[:0]
    protocol = {
        "ground_truth": task.name,
        "queries": len(task.query_ids),
        "index": len(task.index_ids),
        "distractors": len(more),
        "not_searched": others if sets["index"].ids is not None else 0,
        "normalize": normalize,
        **_how_extracted(sets),
        "image_variant": image_variant(ground_truth),
    }
    protocol["remarks"] = remarks_on_task(task) + remarks(protocol) + _remarks_on_sets(sets)
    root = sets["index"].meta.get("image_root") or ""
    names = sets["distractor"].ids if len(parts) == 1 and "distractor" in sets else None
    queries = np.asarray(sets["query"].select(task.query_ids))
    return Inputs(queries, own, more, protocol, root, names)


def _behind(rows: Rows, count: int) -> list[np.ndarray]:
    """Returns the rows after the first `count`, as views of the arrays: nothing is read."""
    parts = []
    for array in rows.arrays:
        parts.append(array[count:])
        count = max(0, count - len(array))
    return [part for part in parts if len(part)]


def _check_not_in_index(distractors: DescriptorSet, index: DescriptorSet, task) -> None:
    """Refuses shared names, which in one folder mean the same photo, unlike in two."""
    shared = set(distractors.ids or ()).intersection(task.index_ids)
    if shared and of_one_folder(distractors.meta, index.meta):
        raise InputError(
            f"{len(shared)} distractors of {distractors.source} are photos of the index, such as "
            f"{min(shared)!r}; distractors are other photos"
        )


def _how_extracted(sets: dict[str, DescriptorSet]) -> dict:
    crop = sets["query"].meta.get("crop")
    protocol = {
        "query_crop": {True: "box", False: "none", None: None}[crop],
        "model_hash": sets["query"].meta.get("model_hash"),
        "whitening": sets["query"].meta.get("whitening"),
    }
    protocol |= {
        key: sets["query"].meta.get(key) for key in ("upright", "query_scale", "box_rounding")
    }
    for key in ("scales", "max_side"):
        protocol |= {f"{name}_{key}": found.meta.get(key) for name, found in sets.items()}
    return protocol


def image_variant(ground_truth: files.Path | None) -> str:
    """Returns "original", "blurred" or "mixed", as prepared.json says, else "unknown"."""
    prepared = None if ground_truth is None else pathlib.Path(ground_truth).parent / _PREPARED
    if prepared is None or not prepared.exists():
        return "unknown"
    return files.read_json(prepared, _PREPARED_VERSION).get("variant") or "unknown"


def remarks_on_task(task: GroundTruth) -> list[str]:
    """Returns how an own ground truth differs from the benchmark's."""
    remarks = []
    if task.original:
        remarks.append(
            "its photos are listed as 'ok', by the original protocol of Oxford and Paris, which "
            "has one level: easy and medium are both that level, and hard has no photo"
        )
    boxed = sum(query.box is not None for query in task.queries)
    if boxed < len(task.queries):
        remarks.append(f"{len(task.queries) - boxed} queries have no box and are whole photos")
    return remarks


def remarks(protocol: dict) -> list[str]:
    """Returns what a reader must know before comparing the scores with others."""
    found = []
    if protocol.get("normalize"):
        found.append("descriptors were divided by their norms")
    if protocol["query_crop"] == "none":
        found.append(
            f"{NOT_CUT}: not the benchmark's protocol; compare only with scores of that kind"
        )
    elif protocol["query_crop"] is None:
        found.append("whether queries were cut to their boxes is not known: an .npy does not say")
    if protocol["image_variant"] in ("blurred", "mixed"):
        found.append("faces are blurred in these photos; published scores are of the originals")
    if protocol["query_scale"] == "crop" and protocol.get("query_max_side"):
        found.append(
            "queries were shrunk by the size of their boxes, not by their photos' as DELF's are"
        )
    return found


def _remarks_on_sets(sets: dict[str, DescriptorSet]) -> list[str]:
    """Returns what differs between the sets; an `.npy` does not say how it was made."""
    remarks, index = [], sets["index"].meta
    for key in ("scales", "max_side", "upright"):
        for name, several in (("query", "queries"), ("distractor", "distractors")):
            found = sets[name].meta.get(key) if name in sets else None
            if None not in (found, index.get(key)) and found != index[key]:
                remarks.append(f"{several} were extracted with other {key} than the index")
    return remarks
