"""A map on which photos with similar descriptors lie near one another."""

import dataclasses
import posixpath
from collections.abc import Iterator

import numpy as np

from dolg_tf.apps.pictures.names import legend, shown
from dolg_tf.apps.report import tsne
from dolg_tf.apps.report.figures.style import COLOURS, new_plot, slug
from dolg_tf.apps.report.page import Block, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError

_COMPONENTS = 50  # kept by PCA before t-SNE
_PERPLEXITY = 30
_LEAST = 10  # photos
_MARKS = "os^DvP*X"
_LEGEND = 12  # largest number of landmarks in a legend
_GREY = "#bdbdbd"


def show(run: RunFiles, one: Evaluation) -> Iterator[Block]:
    """Shows photos on a map of their descriptors."""
    found = map_photos(one.truth, one.inputs.queries, one.inputs.index)
    caption = (
        f"Photos of {one.name}: PCA, then t-SNE. Each landmark has a colour and a mark; "
        "queries are larger, with a rim; grey points show no query's landmark. Only "
        "nearness has a meaning."
    )
    figure, alt = embedding_map(found), describe_map(found)
    yield Picture(f"map_{slug(one.name)}", figure, alt, caption)


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
    """Photos on a map.

    Attributes:
      points: float (N, 2); the axes have no unit.
      landmark: int64 (N,), number of the landmark; -1: of no query's landmark.
      is_query: bool (N,).
      names: of each landmark, the id of its first query.
    """

    points: np.ndarray
    landmark: np.ndarray
    is_query: np.ndarray
    names: tuple[str, ...]


def landmarks_of(task: GroundTruth) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Groups photos by landmark: queries that share an easy or hard photo show the same one.

    Returns:
      Numbers of the landmarks, int64 (queries,) and int64 (index photos,), -1 where no query
      shows it, and the id of each landmark's first query.
    """
    of_query, of_index = (
        np.full(len(ids), -1, np.int64) for ids in (task.query_ids, task.index_ids)
    )
    for number, query in enumerate(task.queries):
        rows = np.concatenate([query.easy, query.hard])
        met = np.unique(of_index[rows])
        met = met[met >= 0]
        own = int(met[0]) if len(met) else number
        for other in met[1:]:  # joins what looked like several landmarks
            of_query[of_query == other] = own
            of_index[of_index == other] = own
        of_query[number] = of_index[rows] = own
    firsts, of_query = np.unique(of_query, return_inverse=True)
    known = of_index >= 0
    of_index[known] = np.searchsorted(firsts, of_index[known])
    return of_query, of_index, tuple(task.query_ids[first] for first in firsts)


def embed(rows: np.ndarray) -> np.ndarray:
    """Returns places of descriptors on a plane: PCA to 50 components, then t-SNE.

    Args:
      rows: float32 (N, D), N at least 10.

    Returns:
      float32 (N, 2), the same at each run on one machine.

    Raises:
      InputError: when there are fewer descriptors.
    """
    if len(rows) < _LEAST:
        raise InputError(f"{len(rows)} photos are too few for a map; it takes at least {_LEAST}")
    reduced = tsne.principal_components(np.asarray(rows, np.float64), _COMPONENTS)
    return tsne.place(reduced, min(_PERPLEXITY, (len(rows) - 1) / 3))


def map_photos(
    task: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    most: int = 2000,
    seed: int = 0,
) -> EmbeddingMap:
    """Puts the queries and photos of the index on a map.

    Args:
      task: the ground truth.
      queries: float32 (Q, D), rows as `task.query_ids`.
      index: (N, D), rows as `task.index_ids`.
      most: photos on the map; when there are more, queries come first, then photos of their
        landmarks, then others, drawn at random.
      seed: of the draw.

    Raises:
      InputError: see `embed`.
    """
    of_query, of_index, names = landmarks_of(task)
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(of_query))[:most])
    order = rng.permutation(len(of_index))
    order = order[np.argsort(of_index[order] < 0, kind="stable")]
    rows = np.sort(order[: most - len(some)])
    both = np.concatenate([queries[some], np.asarray(index[rows], np.float32)])
    return EmbeddingMap(
        embed(both),
        np.concatenate([of_query[some], of_index[rows]]),
        np.arange(len(both)) < len(some),
        names,
    )


def embedding_map(found: EmbeddingMap):
    """Draws the map: a colour and a mark for each landmark, queries larger, with a black rim.

    With more landmarks than pairs of a colour and a mark, pairs repeat.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("", "", height=5.0)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    for landmark in range(-1, len(found.names)):
        for query in (False, True):
            chosen = (found.landmark == landmark) & (found.is_query == query)
            if not chosen.any():
                continue
            colour = COLOURS[landmark % len(COLOURS)] if landmark >= 0 else _GREY
            # The mark changes with each landmark too, so that neighbours in the list differ in
            # both; 7 colours and 8 marks give 56 pairs before one repeats.
            mark = _MARKS[landmark % len(_MARKS)] if landmark >= 0 else "."
            axes.scatter(
                *found.points[chosen].T,
                s=42 if query else 14,
                c=colour,
                marker=mark,
                alpha=1.0 if query else 0.75,
                edgecolors="black" if query else "white",
                linewidths=0.9 if query else 0.3,
                zorder=1 + (landmark >= 0) + query,
                label=shown(posixpath.basename(found.names[landmark]), 30) if query else None,
            )
    if len(found.names) <= _LEGEND:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
        legend(axes, fontsize=7, ncols=3, **place)
    return figure


def near_share(found: EmbeddingMap) -> float:
    """Returns the share of photos whose nearest photo on the map shows the same landmark.

    Only photos whose landmark a query shows are counted.
    """
    own = np.flatnonzero(found.landmark >= 0)
    right = 0
    for row in own:
        distance = np.sum((found.points - found.points[row]) ** 2, axis=1)
        distance[row] = np.inf
        right += found.landmark[np.argmin(distance)] == found.landmark[row]
    return float(right / len(own))


def describe_map(found: EmbeddingMap) -> str:
    """Returns in words what `embedding_map` draws."""
    others = int(np.count_nonzero(found.landmark < 0))
    return (
        f"Map of {len(found.points):,} photos of {len(found.names):,} landmarks, "
        f"{np.count_nonzero(found.is_query):,} of them queries"
        + (f" and {others:,} photos of other landmarks in grey" if others else "")
        + f"; the nearest neighbour of {100 * near_share(found):.0f} % shows the same landmark."
    )
