"""Approximate search in little memory: faiss' inverted lists of product-quantised descriptors.

Reference: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", 2011.
"""

import logging

import numpy as np

from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.rows import blocks
from dolg_tf.retrieval.with_faiss import import_faiss
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_BLOCK = 16384
_CODEWORDS = 256  # per part of a descriptor: one byte
# Rows for k-means per centre, and in total: a quarter of a GB at 512 dimensions.
_PER_CENTRE, _MOST_TRAINING_ROWS = 64, 131072
RECALL_AT = (1, 10, 100)
_NEED = "an ivfpq index (--kind=flat needs no package)"
_RECALL_QUERIES = 1000
_ANSWERS = 2**23  # scores and labels that faiss returns at a time: 0.1 GB


def sizes(rows: int, width: int, nlist: int, m: int) -> tuple[int, int]:
    """Returns (nlist, m), with a value in place of 0.

    Args:
      rows: N.
      width: D.
      nlist: cells; 0: two square roots of N, at most N / 64.
      m: bytes per descriptor; 0: the largest divisor of D up to D / 8.

    Raises:
      InputError: when m does not divide D, or there are too few rows to train on.
    """
    if not nlist:
        nlist = max(1, min(round(2 * rows**0.5), rows // _PER_CENTRE))
    if not m:
        m = max(m for m in range(1, max(1, width // 8) + 1) if width % m == 0)
    if width % m:
        raise InputError(f"--m={m} must divide the descriptor's length, {width}")
    least = max(nlist, _CODEWORDS)
    if rows < least:
        raise InputError(
            f"{rows} descriptors are too few for --kind=ivfpq with --nlist={nlist}, which needs "
            f"{least}; build --kind=flat"
        )
    return nlist, m


def build(rows, nlist: int, m: int, nprobe: int):
    """Returns a faiss.IndexIVFPQ of the inner product, labelled by row number.

    Args:
      rows: `Rows` or float32 (N, D).
      nlist: cells.
      m: bytes per descriptor.
      nprobe: cells that a search visits.
    """
    faiss = import_faiss(_NEED)
    width = rows.shape[1]
    metric = faiss.METRIC_INNER_PRODUCT
    built = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, nlist, m, 8, metric)
    built.nprobe = nprobe
    count = min(len(rows), _MOST_TRAINING_ROWS, _PER_CENTRE * max(nlist, _CODEWORDS))
    sample = np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))
    # faiss would only warn of few rows, on standard error; the caller sees the recall.
    built.cp.min_points_per_centroid = built.pq.cp.min_points_per_centroid = 1
    built.pq.cp.max_points_per_centroid = _PER_CENTRE
    log.info("training %d cells and %d x %d codewords on %d rows", nlist, m, _CODEWORDS, count)
    with progress.waiting_for("k-means"):
        built.train(np.ascontiguousarray(rows[sample], np.float32))
    add(built, rows, 0)
    return built


def add(index, rows, first: int) -> None:
    """Adds (N, D) rows under the labels from `first` on."""
    total = -(-len(rows) // _BLOCK)
    for start, block in progress.track(blocks(rows, _BLOCK), total, "encode", "blocks"):
        labels = np.arange(first + start, first + start + len(block))
        index.add_with_ids(np.ascontiguousarray(block), labels)


def relabel(index, labels: np.ndarray) -> None:
    """Gives each entry a new label: `labels[old]`; entries whose new label is -1 are removed."""
    faiss = import_faiss(_NEED)
    index.remove_ids(np.flatnonzero(labels < 0))
    for cell in range(index.nlist):
        size = index.invlists.list_size(cell)
        if size:
            entries = faiss.rev_swig_ptr(index.invlists.get_ids(cell), size)
            entries[:] = labels[entries]


def find(index, queries: np.ndarray, k: int) -> Neighbours:
    """Finds the k nearest labels of each query, the lower one first among equal scores.

    Scores are approximate. If the cells visited hold fewer than k, labels are -1 and scores -inf.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    shape = (len(queries), k)
    scores, labels = np.empty(shape, np.float32), np.empty(shape, np.int64)
    left, wanted = np.arange(len(queries)), min(k + 16, index.ntotal)
    while left.size:
        some, tied = max(1, _ANSWERS // wanted), []
        for start in range(0, len(left), some):
            part = left[start : start + some]
            found, places = index.search(queries[part], wanted)
            found = np.where(places < 0, np.float32(-np.inf), found)
            order = np.lexsort((places, -found), axis=1)[:, :k]
            scores[part] = np.take_along_axis(found, order, 1)
            labels[part] = np.take_along_axis(places, order, 1)
            # Which of several equal scores come last is chance in faiss, so it is asked for more
            # until the last is below the k-th.
            tied.append(part[(found[:, k - 1] == found[:, -1]) & (found[:, -1] > -np.inf)])
        left = np.concatenate(tied) if wanted < index.ntotal else left[:0]
        wanted = min(4 * wanted, index.ntotal)
    return Neighbours(scores, labels)


def recall(index, rows) -> dict[str, float]:
    """Measures the share of the exact k nearest that approximate search finds among its own k.

    Queries are up to 1,000 rows of the index, each searched among all others.

    Returns:
      {"k": a fraction} for each k of `RECALL_AT`.
    """
    count = min(len(rows), _RECALL_QUERIES)
    own = np.sort(np.random.default_rng(1).choice(len(rows), count, replace=False))
    queries = np.asarray(rows[own], np.float32)
    deepest = max(RECALL_AT) + 1  # the row itself is left out
    exact = search.search(rows, queries, deepest).rows
    found = find(index, queries, deepest).rows
    shares = {}
    for k in RECALL_AT:
        hits = 0
        for row, wanted, got in zip(own, exact, found, strict=True):
            hits += len(np.intersect1d(wanted[wanted != row][:k], got[got != row][:k]))
        shares[str(k)] = hits / (count * k)
    return shares


def write(index, path: files.Path) -> None:
    """Writes faiss' own file.

    Raises:
      InputError: when the file cannot be written.
    """
    try:
        import_faiss(_NEED).write_index(index, str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: faiss cannot write it ({error}); make room") from error


def read(path: files.Path, rows: int, width: int):
    """Reads faiss' own file. The caller has checked its checksum, since faiss trusts what it reads.

    Raises:
      InputError: when it is not an IVF-PQ index of this size.
    """
    faiss = import_faiss(_NEED)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: faiss cannot read it ({error}); build it again") from error
    if not isinstance(index, faiss.IndexIVFPQ) or (index.ntotal, index.d) != (rows, width):
        raise InputError(f"{path}: not an IVF-PQ index of {rows} x {width}; build it again")
    return index
