"""`dolg export`: a network in the form of a mode; for mode `search`, with an index inside."""

import dataclasses
import logging
import pathlib

import numpy as np

from dolg_tf.retrieval.exact import products, search
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.landmarks import landmarks_of
from dolg_tf.retrieval.meta import whitened_after
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.serving import export as stage
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.searched import Searched
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_BLOCK = 16384  # rows read at a time
_ASKED = 1000  # rows of the index that ask for the others, to measure the recall


def export(config: ExportConfig) -> pathlib.Path:
    """Exports a trained, converted or ready network in the form that `--mode` names.

    The written model is run before it is put in place and must answer as the network does.

    Returns:
      The directory of the SavedModel, or the file.

    Raises:
      InputError: when the output exists, a package is missing, or model, index, whitening or
        report cannot be read or do not fit.
      RuntimeError: when the written model does not answer as the network does.
    """
    if config.mode != "search":
        return stage.export(config)
    stage.check(config)
    index = Index.open(config.index)
    config = _described_alike(config, index)
    return stage.export(config, _searched(config, index))


def _described_alike(config: ExportConfig, index: Index) -> ExportConfig:
    """Returns the options with what the index says of how its photos were described.

    Raises:
      InputError: when the index cannot be searched inside a model, or an option contradicts it.
    """
    meta = index.meta
    if index.descriptors is None:
        raise InputError(
            f"{index.path} is approximate, and mode search is exact: give an index of --kind=flat, "
            "which `dolg index rebuild` makes of the photos"
        )
    if meta["scales"] is None:
        raise InputError(
            f"{index.path} has imported descriptors, whose scales are unknown: extract the photos "
            "with the model, and build their index"
        )
    if index.min_inliers:
        log.warning(
            "%s: a match needs %d inliers too, which mode search does not count: it tells no "
            "matches",
            *(index.path, index.min_inliers),
        )
    scales = tuple(meta["scales"])
    if config.scales not in (ExportConfig.scales, scales):
        raise InputError(
            f"--scales={','.join(map(str, config.scales))}: those of {index.path} are "
            f"{','.join(map(str, scales))}; leave the option out"
        )
    upright = bool(meta["upright"])
    if not config.upright and upright:
        raise InputError(f"--noupright: the photos of {index.path} were turned upright; omit it")
    return dataclasses.replace(config, scales=scales, upright=upright)


def _searched(config: ExportConfig, index: Index) -> Searched:
    rows, meta, k = index.descriptors, index.meta, min(config.k, len(index))
    if k < config.k:
        log.warning("--k=%d: the index has %d photos, so as many are found", config.k, k)
    landmarks = landmarks_of(config.labels_csv, index.ids) if config.labels_csv else None
    about = {"path": index.path.name, "rows": len(index), "width": meta["width"], "k": k}
    about |= {"precision": config.index_precision, "sha256": meta["sha256"]["index.faiss"]}
    if config.index_precision == "float16":
        rows = Rows([np.concatenate([part.astype("f2") for _, part in blocks(rows, _BLOCK)])])
        about["recall"] = _recall(index, rows, k)
    longest = max(
        float(products.lengths(part, "index", start).max()) for start, part in blocks(rows, _BLOCK)
    )
    return Searched(
        rows=rows,
        dtype=config.index_precision,
        ids=index.ids,
        landmarks=landmarks,
        threshold=None if index.min_inliers else index.threshold,
        k=k,
        max_side=meta["max_side"] or 0,
        longest=longest,
        source=str(index.path),
        model_hash=meta["model_hash"],
        whitened=whitened_after(meta),
        about=about,
    )


def _recall(index: Index, rows: Rows, k: int) -> float:
    """Returns the share of the k best photos that are found with rounded descriptors, and says it.

    Photos of the index ask: evenly spaced ones, at most 1,000.
    """
    asked = np.unique(np.linspace(0, len(index) - 1, _ASKED).astype(np.int64))
    queries = index.descriptors[asked]
    exact, rounded = (search.search(kind, queries, k).rows for kind in (index.descriptors, rows))
    recall = search.share_found(exact, rounded)
    log.info(
        "float16: %.2f%% of the %d best photos are those of float32 (%d photos of the index asked)",
        *(100 * recall, k, len(asked)),
    )
    return recall
