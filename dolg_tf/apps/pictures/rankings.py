"""From rankings to the rows of a picture: the queries to show, and the photos that they found."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dolg_tf.apps.pictures.ranked_list import RankedPhoto, RankedRow
from dolg_tf.evaluation.revisited.score import LEVELS, score_descriptors
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.photos import Photo, PhotosConfig, list_photos
from dolg_tf.retrieval.ground_truth import GroundTruth, Query, load_ground_truth
from dolg_tf.stage import files

# Longest side of a photo in a picture, in pixels.
_SHOWN = Preparation(320)


def spread_queries(ap: Sequence[float | None], count: int) -> list[int]:
    """Returns queries from the best to the worst AP in even steps, so that a picture is fair."""
    scored = [query for query, value in enumerate(ap) if value is not None]
    order = sorted(scored, key=lambda query: (-ap[query], query))
    picks = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[pick] for pick in picks]


def known_kinds(query: Query, level: str) -> dict[int, str]:
    """Returns the kind of each index photo that is "positive" or "junk" for a query.

    Args:
      query: of a ground truth.
      level: easy, medium or hard.
    """
    positive, junk = LEVELS[level]
    kinds = {int(row): "positive" for label in positive for row in getattr(query, label)}
    return kinds | {int(row): "junk" for label in junk for row in getattr(query, label)}


def ranked_rows(
    task: GroundTruth,
    query_photos: Sequence[Photo],
    index_photos: Sequence[Photo],
    found: tuple[np.ndarray, np.ndarray],
    chosen: Sequence[int],
    level: str = "medium",
    top: int = 10,
    ap: Sequence[float | None] | None = None,
) -> list[RankedRow]:
    """Reads the photos of rankings, for `ranked_list.ranked_list`.

    Args:
      task: the ground truth.
      query_photos: in the order of `task.query_ids`; a photo with a box gets it drawn,
        unless it is the whole photo.
      index_photos: in the order of `task.index_ids`.
      found: (scores, ranks) of `dolg_tf.retrieval.exact.search.search`, for all queries.
      chosen: numbers of the queries to show.
      level: easy, medium or hard: what counts as the same landmark.
      top: photos per query.
      ap: of all queries, shown under the query photo.

    Raises:
      InputError: when a photo cannot be read.
    """
    scores, ranks = found
    rows = []
    for query in chosen:
        kinds = known_kinds(task.queries[query], level)
        photo = query_photos[query]
        results = [
            RankedPhoto(
                read_photo(index_photos[row], _SHOWN), kinds.get(row, "negative"), float(score)
            )
            for row, score in zip(ranks[query][:top], scores[query][:top], strict=True)
        ]
        known = ap is not None and ap[query] is not None
        label = f"query, AP {100 * ap[query]:.0f} %" if known else "query"
        whole = read_photo(dataclasses.replace(photo, box=None))
        height, width = whole.shape[:2]
        box = None if photo.box == (0, 0, width, height) else photo.box
        rows.append(RankedRow(whole, results, box, label))
    return rows


def task_photos(
    ground_truth: files.Path,
    image_root: files.Path,
    crop_queries: bool,
    upright: bool | None = None,
) -> tuple[Sequence[Photo], Sequence[Photo]]:
    """Finds the photos of a ground truth.

    Args:
      ground_truth: gnd_*.pkl or gnd_*.mat.
      image_root: folder of the photos.
      crop_queries: whether queries are cut to their boxes.
      upright: whether photos are turned by their EXIF orientation; None: as the ground truth says.

    Returns:
      Queries and index photos, in the order of the ground truth.

    Raises:
      InputError: when the folder is missing, or two photos share an id.
    """
    found = []
    for subset in ("query", "index"):
        settings = PhotosConfig(
            images=str(ground_truth),
            image_root=str(image_root),
            subset=subset,
            output="",
            crop_queries=crop_queries,
            upright=upright,
        )
        found.append(list_photos(settings).photos)
    return found[0], found[1]


def photos_of_evaluation(
    ground_truth: files.Path, image_root: files.Path, protocol: Mapping
) -> tuple[Sequence[Photo], Sequence[Photo]]:
    """Finds the photos of a ground truth, cut and turned as the protocol of its scores says."""
    crop = protocol["query_crop"] != "none"
    return task_photos(ground_truth, image_root, crop, protocol["upright"])


def made_like(protocol: Mapping, subset: str) -> dict:
    """Returns how the query or index photos of an evaluation were prepared, as a set's metadata."""
    return {**protocol, "max_side": protocol[f"{subset}_max_side"]}


def rows_of_evaluation(
    ground_truth: files.Path,
    image_root: files.Path,
    query_descriptors: files.Path,
    index_descriptors: files.Path,
    count: int = 5,
    level: str = "medium",
    top: int = 10,
    normalize: bool = False,
) -> list[RankedRow]:
    """Searches again and shows `count` queries from the best to the worst AP, in even steps.

    Args:
      ground_truth, query_descriptors, index_descriptors, normalize: as for
        `dolg_tf.evaluation.revisited.score.evaluate_revisited`.
      image_root: folder of the photos.
      count: queries shown, fewer when fewer have positives.
      level: easy, medium or hard.
      top: photos per query.
    """
    task = load_ground_truth(ground_truth)
    queries = descriptors.read(query_descriptors, normalize)
    crop = queries.meta.get("crop", True)
    turned = queries.meta.get("upright")
    query_photos, index_photos = task_photos(ground_truth, image_root, crop, turned)
    index_rows = descriptors.read(index_descriptors, normalize).select(task.index_ids)
    query_rows = np.asarray(queries.select(task.query_ids))
    found = search.search(index_rows, query_rows, top)
    ap = score_descriptors(task, query_rows, index_rows)[level].AP
    chosen = spread_queries(ap, count)
    return ranked_rows(task, query_photos, index_photos, found, chosen, level, top, ap)
