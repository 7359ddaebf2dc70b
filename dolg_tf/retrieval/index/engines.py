"""Vector engines: databases that hold an index for who outgrows one machine.

    dolg index push --index=INDEX --engine=milvus --uri=http://host:19530
    dolg index query --index=INDEX --engine=milvus --uri=http://host:19530 \\
        --descriptors=SET --output=found.csv

The index stays the original: an engine holds a copy, which `push` brings in step.
"""

import dataclasses
import hashlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dolg_tf.retrieval.exact.search import inner_products
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.landmarks import landmarks_of
from dolg_tf.retrieval.meta import whitened_after
from dolg_tf.stage import installed, progress
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

# Import name of the package, by the name of the engine, its extra and its module here.
ENGINES = {"milvus": "pymilvus"}

_BATCH = 1000  # rows that are sent at a time
_MOST = 1000  # bytes of an id or a landmark


class Row(NamedTuple):
    """A photo as an engine holds it.

    Attributes:
      id: of the photo.
      landmark: "" where it is not known.
      model: which model described it, see `model_of`.
      digest: of what it holds, so that changed rows are found without reading vectors.
      vector: float32 (D,).
    """

    id: str
    landmark: str
    model: str
    digest: str
    vector: np.ndarray


class Engine(Protocol):
    """A collection in a database, as `push` and `query` need it; a context that closes it."""

    def __enter__(self) -> "Engine": ...
    def __exit__(self, *_: object) -> None: ...

    def create(self, width: int) -> None:
        """Makes the collection if it is not there.

        Raises:
          InputError: when there is one of another form.
        """

    def digests(self) -> Iterator[tuple[str, str]]:
        """Yields id and digest of each row."""

    def other_model(self, model: str) -> str | None:
        """Returns the model of a row that is of another one; None: there is none."""

    def put(self, rows: Sequence[Row]) -> None:
        """Adds rows, or replaces those of the same ids."""

    def drop(self, ids: Sequence[str]) -> None:
        """Removes rows."""

    def count(self) -> int:
        """Returns the number of rows; 0 where there is no collection."""

    def search(self, queries: np.ndarray, k: int) -> list[list[tuple[str, str, float]]]:
        """Returns id, landmark and inner product of the k nearest rows of each query."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine holds a copy of the index, and where."""

    engine: str = option(
        "vector engine that holds a copy of the index; empty: none", "", choices=("", *ENGINES)
    )
    uri: str = option(
        "of the engine: http://host:19530, or NAME.db, which is Milvus Lite in this process; a "
        "token is read from the environment variable DOLG_ENGINE_TOKEN",
        "",
    )
    collection: str = option("of the engine: letters, digits and underscores", "dolg")

    def __post_init__(self):
        if bool(self.engine) != bool(self.uri):
            raise InputError("--engine and --uri belong together: give both, or none")
        name = self.collection
        if not (name.isidentifier() and name.isascii() and len(name) <= 255):
            raise InputError(f"--collection={name} must be letters, digits and underscores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushConfig(EngineConfig):
    """Which index is copied to an engine."""

    index: str = option("index (a directory)")
    labels_csv: str = option(
        "CSV with the columns path (or id) and landmark, for the field landmark; empty: none", ""
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.engine:
            raise InputError(f"--engine is missing; give one of {', '.join(ENGINES)}, and --uri")


def open_engine(settings: EngineConfig) -> Engine:
    """Connects to an engine.

    Raises:
      InputError: when its package is missing, or it does not answer.
    """
    installed.need(settings.engine, f"--engine={settings.engine}", ENGINES[settings.engine])
    # By the name in the table, and only now, since its package takes seconds to import.
    module = importlib.import_module(f"dolg_tf.retrieval.index.{settings.engine}")
    return module.connect(settings.uri, settings.collection)


def model_of(meta: Mapping) -> str:
    """Returns what tells descriptors of one kind from others: the model's hash, and whitening's."""
    after = whitened_after(meta)
    return f"{meta['model_hash']}+{after}" if after else str(meta["model_hash"])


# --- push ----------------------------------------------------------------------------


def push(settings: PushConfig) -> None:
    """Copies an index to a vector engine: what is new or has changed is sent, what is gone removed.

    The same command continues after an interruption.

    Raises:
      InputError: when the engine does not answer, or holds descriptors of another model.
    """
    index = Index.open(settings.index)
    if index.descriptors is None:
        raise InputError(
            f"{index.path} is approximate and has no descriptors: push an index of --kind=flat"
        )
    landmarks = [""] * len(index)
    if settings.labels_csv:
        landmarks = landmarks_of(settings.labels_csv, index.ids)
    _check_lengths(index.ids, "id")
    _check_lengths(landmarks, "landmark")
    model = model_of(index.meta)
    with open_engine(settings) as engine:
        engine.create(index.meta["width"])
        _check_model(engine, settings, index)
        there = dict(engine.digests())
        gone = sorted(there.keys() - set(index.ids))
        for start in range(0, len(gone), _BATCH):
            engine.drop(gone[start : start + _BATCH])
        sent = 0
        starts = range(0, len(index), _BATCH)
        for start in progress.track(starts, len(starts), "push", f"batches of {_BATCH}"):
            part = slice(start, start + _BATCH)
            rows = _rows(index, landmarks, model, part)
            changed = [row for row in rows if there.get(row.id) != row.digest]
            if changed:
                engine.put(changed)
                sent += len(changed)
        if (count := engine.count()) != len(index):
            raise InputError(
                f"{settings.uri}: {settings.collection} has {count} rows, the index "
                f"{len(index)}: another process may be changing it; push again"
            )
    log.info("%s: %d rows, %d sent, %d removed", settings.collection, len(index), sent, len(gone))


def _rows(index: Index, landmarks: list[str], model: str, part: slice) -> list[Row]:
    found = []
    vectors = index.descriptors[part]
    for id_, landmark, vector in zip(index.ids[part], landmarks[part], vectors, strict=True):
        told = f"{model}\n{landmark}\n".encode() + vector.tobytes()
        found.append(Row(id_, landmark, model, hashlib.sha256(told).hexdigest()[:32], vector))
    return found


def _check_lengths(names: Sequence[str], what: str) -> None:
    for name in names:
        if len(name.encode()) > _MOST:
            raise InputError(
                f"the {what} {name[:40]!r}... has {len(name.encode())} bytes, an engine takes "
                f"{_MOST}; shorten it"
            )


def _check_model(engine: Engine, settings: EngineConfig, index: Index) -> None:
    model = model_of(index.meta)
    if other := engine.other_model(model):
        raise InputError(
            f"{settings.uri}: {settings.collection} holds descriptors of model {other}, "
            f"{index.path} is of {model}; choose another --collection"
        )


# --- query ---------------------------------------------------------------------------


class Found(NamedTuple):
    """The nearest photos of each query by an engine, best first.

    Attributes:
      rows: int64 (Q, k), rows of the index; -1 where fewer were found.
      scores: float32 (Q, k), inner products; -inf there.
      landmarks: of the photos, (Q, k); None: of none.
    """

    rows: np.ndarray
    scores: np.ndarray
    landmarks: list[list[str]] | None


def find(settings: EngineConfig, index: Index, queries: np.ndarray, k: int) -> Found:
    """Searches the copy of an index that an engine holds.

    Scores are taken from the descriptors of the index, and order the answers, where it has them.

    Raises:
      InputError: when the copy is of another model, or not in step with the index.
    """
    row_of = {id_: row for row, id_ in enumerate(index.ids)}
    shape = len(queries), min(k, len(index))
    rows, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    landmarks = [[""] * shape[1] for _ in range(shape[0])]
    with open_engine(settings) as engine:
        if (count := engine.count()) != len(index):
            raise InputError(
                f"{settings.uri}: {settings.collection} has {count} rows, {index.path} "
                f"{len(index)}; `dolg index push` brings it in step"
            )
        _check_model(engine, settings, index)
        answers = (
            answer
            for start in range(0, len(queries), _BATCH)
            for answer in engine.search(queries[start : start + _BATCH], shape[1])
        )
        for query, answer in enumerate(answers):
            names = [name for name, _, _ in answer]
            if unknown := [name for name in names if name not in row_of]:
                raise InputError(
                    f"{settings.uri}: {settings.collection} has {unknown[0]!r}, which {index.path} "
                    "does not have; `dolg index push` brings it in step"
                )
            own = np.array([row_of[name] for name in names], np.int64)
            order, exact = _ordered(index, queries[query], own, [score for _, _, score in answer])
            rows[query, : len(own)], scores[query, : len(own)] = own[order], exact
            landmarks[query][: len(own)] = [answer[place][1] for place in order]
    known = any(map(any, landmarks))
    return Found(rows, scores, landmarks if known else None)


def _ordered(index: Index, query, rows, told) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of the rows found, best first and the lower of equals, and their scores."""
    scores = np.asarray(told, np.float32)
    if index.descriptors is not None and len(rows):
        scores = inner_products(np.asarray(query, np.float32), index.descriptors[rows])
    order = np.lexsort((rows, -scores))
    return order, scores[order]
