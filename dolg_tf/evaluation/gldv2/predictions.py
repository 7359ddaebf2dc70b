"""Descriptor sets -> predictions for GLDv2: the nearest index photos, or the landmark."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dolg_tf.data.records.label_lists import ListsConfig
from dolg_tf.evaluation.gldv2.kaggle_csv import COLUMNS, Prediction, Recognised
from dolg_tf.evaluation.gldv2.sets import (
    Landmarks,
    Sets,
    find_queries,
    kaggle_ids,
    read_landmarks,
    read_sets,
)
from dolg_tf.evaluation.metrics import GLDV2_DEPTH
from dolg_tf.retrieval.exact.blocks import BLOCK, Penalised, Pieces, nearest, with_one
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.stage import config, files
from dolg_tf.stage.config import InputError, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionsConfig(NormConfig):
    """The queries, the photos that are searched, and how a landmark is chosen."""

    task: str = option(
        "retrieval: the 100 nearest index photos of each query; recognition: its landmark",
        choices=tuple(COLUMNS),
    )
    query_descriptors: str = option("descriptor set of the queries (GLDv2's test photos)")
    index_descriptors: str = option(
        "descriptor set of the index; for recognition of the training photos"
    )
    train_csv: str = option("recognition: GLDv2's train.csv (id,url,landmark_id), the labels", "")
    train_clean_csv: str = option(
        "recognition: GLDv2's train_clean.csv (landmark_id,images), the labels; when given, it "
        "alone decides",
        "",
    )
    labels_csv: str = option(
        "recognition: your own list instead: path,landmark (or path,label) and perhaps split, of "
        "which train is taken; the paths without suffix are the ids of the index",
        "",
    )
    top_k: int = option(
        "recognition: number of nearest training photos whose similarities are summed by landmark",
        3,
        unit="photos",
    )
    non_landmarks: str = option(
        "recognition: descriptor set of photos without a landmark; photos similar to them are "
        "penalised; empty: no penalty",
        "",
    )
    non_landmarks_k: int = option(
        "recognition: number of nearest non-landmarks whose mean similarity is a photo's penalty",
        5,
        unit="photos",
    )

    def __post_init__(self):
        config.at_least(self, top_k=1, non_landmarks_k=1)
        labels = (self.train_csv, self.train_clean_csv, self.labels_csv)
        if self.task == "retrieval" and any([*labels, self.non_landmarks]):
            raise InputError(
                "--task=retrieval takes no --train_csv, --train_clean_csv, --labels_csv or "
                "--non_landmarks; they are for --task=recognition"
            )
        if self.task == "recognition" and self.index_descriptors:
            self.lists()

    def lists(self) -> ListsConfig:
        """Returns the lists of landmarks.

        Raises:
          InputError: when there is none, or two contradict each other.
        """
        return ListsConfig(
            images_dir="" if self.labels_csv else ".",  # no photo is opened
            train_csv=self.train_csv,
            train_clean_csv=self.train_clean_csv,
            labels_csv=self.labels_csv,
        )


class Votes(NamedTuple):
    """The label chosen for each query."""

    labels: np.ndarray  # int64 (Q,)
    scores: np.ndarray  # float64 (Q,), sums


def vote(scores: np.ndarray, labels: np.ndarray) -> Votes:
    """Chooses the label whose photos have the highest sum of scores; the lowest label of a tie.

    Args:
      scores: (Q, k), of the nearest training photos of each query.
      labels: int (Q, k), their labels.
    """
    labels = labels.astype(np.int64)
    same = labels[:, :, None] == labels[:, None, :]
    sums = np.where(same, scores[:, None, :].astype(np.float64), 0).sum(axis=2)
    best = sums.max(axis=1)
    chosen = np.where(sums == best[:, None], labels, np.iinfo(np.int64).max).min(axis=1)
    return Votes(chosen, best)


# --- search --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Search:
    """A search whose inputs have been read and checked."""

    settings: PredictionsConfig
    sets: Sets
    rows: np.ndarray  # of the queries in their set
    pieces: Pieces

    def block(self, part: slice) -> np.ndarray:
        """Returns the descriptors of a block of queries."""
        return self.sets.queries.descriptors[self.rows[part]]

    def retrieve(self, names: list[str]) -> Iterator[Prediction]:
        """Yields the index photos that each query finds."""
        names, rows = np.array(names, object), self.sets.index.descriptors
        found = nearest(self.pieces, "retrieval", rows, len(self.rows), self.block, GLDV2_DEPTH)
        for _, ranks in found:
            yield from map(tuple, names[ranks])

    def recognise(self, landmarks: Landmarks) -> Iterator[Prediction]:
        """Yields the landmark of each query, and its score."""
        count, rows = len(self.rows), self.sets.index.descriptors
        block, penalties = self.block, np.zeros(count)
        if self.settings.non_landmarks:
            penalties = self._penalties("penalties of queries", count, self.block)
            of_index = self._penalties("penalties of index", len(rows), lambda part: rows[part])
            rows = Penalised(rows, of_index.astype(np.float32))

            def block(part):
                return with_one(self.block(part))

        found = nearest(self.pieces, "recognition", rows, count, block, self.settings.top_k)
        for start, (scores, ranks) in zip(range(0, count, BLOCK), found, strict=True):
            votes = vote(scores, landmarks.labels[ranks])
            found_scores = votes.scores - penalties[start : start + BLOCK]
            names = [landmarks.names[label] for label in votes.labels]
            yield from map(Recognised, names, found_scores.tolist())

    def _penalties(self, name: str, count: int, block) -> np.ndarray:
        """Returns float64 (count,), mean similarities to the nearest non-landmarks."""
        others, k = self.sets.non_landmarks.descriptors, self.settings.non_landmarks_k
        found = nearest(self.pieces, name, others, count, block, k)
        means = [scores.mean(axis=1, dtype=np.float64) for scores, _ in found]
        return np.concatenate([np.zeros(0), *means])


def _identity(settings: PredictionsConfig, sets: Sets, rows: np.ndarray) -> dict:
    """Returns what must be equal for a run to continue where another stopped."""
    digest = hashlib.sha256(rows.tobytes())
    for found in (found for found in sets if found is not None):
        digest.update(f"{found.descriptors.shape}\n".encode() + "\n".join(found.ids).encode())
        # Mended photos show in the hash of the file sizes that it holds.
        digest.update(json.dumps(found.meta, sort_keys=True).encode())
        # A few rows, for sets whose metadata say less: another network shows in any of them.
        some = np.linspace(0, len(found) - 1, min(len(found), 16)).astype(np.int64)
        digest.update(found.descriptors[some].tobytes())
    options = {key: getattr(settings, key) for key in ("task", "top_k", "non_landmarks_k")}
    return {**options, "block": BLOCK, "inputs_sha256": digest.hexdigest()}


@contextlib.contextmanager
def predictions(
    settings: PredictionsConfig, wanted: Sequence[str] | None, output: files.Path
) -> Iterator[Iterator[tuple[str, Prediction | None]]]:
    """Yields an iterator of (query, prediction), which searches as it is consumed.

    A prediction is the index photos, best first, or a landmark and its score; None for a query
    whose photo could not be read. The index is read in blocks, and only one block of queries is in
    memory. Results are kept in OUTPUT.parts until the caller's block ends, when the output should
    be complete: an interrupted run continues where it stopped.

    With non-landmarks, each training photo's penalty is subtracted from its similarities before the
    nearest are chosen, and the query's penalty from the sum of a landmark (B_j and C_i of the
    paper).

    Args:
      settings: the sets, and how they are searched.
      wanted: Kaggle's ids of the queries, in the order of the predictions; None: all of the set.
      output: the file that the predictions become.

    Raises:
      InputError: when sets, ids or landmarks do not fit together, or another process is writing
        the output.

    Reference: Henkel and Singer, "Supporting large-scale image recognition with out-of-domain
      samples", arXiv 2010.01650: first place of Kaggle's Landmark Recognition 2020.
    """
    sets = read_sets(
        settings.query_descriptors,
        settings.index_descriptors,
        settings.non_landmarks,
        settings.normalize,
    )
    names, rows = find_queries(sets.queries, wanted)
    retrieval = settings.task == "retrieval"
    about = kaggle_ids(sets.index) if retrieval else read_landmarks(settings.lists(), sets.index)
    there = rows[rows >= 0]
    output = pathlib.Path(output)  # without a slash behind it
    folder = pathlib.Path(f"{output}.parts")
    taken = f"another process is writing {output}; wait for it, or choose another --output"
    with files.lock(folder / "lock", taken):
        work = _Search(settings, sets, there, Pieces(folder, _identity(settings, sets, there)))
        found = work.retrieve(about) if retrieval else work.recognise(about)
        yield (
            (name, next(found) if row >= 0 else None) for name, row in zip(names, rows, strict=True)
        )
        shutil.rmtree(folder)
