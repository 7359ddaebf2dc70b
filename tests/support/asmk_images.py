"""Local descriptors of made-up images: queries see their own image again among noise.

They are those of `golden/asmk.npz`.
"""

import importlib.util
import pathlib

import local_sets
import numpy as np

from dolg_tf.retrieval.asmk import build, lists, stages
from dolg_tf.retrieval.asmk.search import Search
from dolg_tf.retrieval.asmk.words import Codebook
from dolg_tf.retrieval.local import writing

WORDS, IMAGES, QUERIES = 64, 30, 5
EMPTY_IMAGES, EMPTY_QUERY = (11, 29), 2

_FILE = pathlib.Path(__file__).parents[1] / "golden/standin_weights.py"
_SPEC = importlib.util.spec_from_file_location("standin_of_asmk", _FILE)
_STANDIN = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_STANDIN)


def centroids(dimensions: int = 128) -> np.ndarray:
    """Returns the codebook, float32 (64, D)."""
    return _STANDIN.value("asmk.centroids", (WORDS, dimensions))


def images(dimensions: int = 128) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the descriptors of index images and queries, float32 (N, D) each, N from 0 to 60."""
    rng = np.random.default_rng([0, 42])
    words, counts = centroids(dimensions), rng.integers(5, 61, IMAGES)
    index, queries = [], []
    for image, count in enumerate(counts):
        near = words[rng.integers(0, WORDS, count)]
        noise = _STANDIN.value(f"asmk.database.{image}", (count, dimensions))
        found = (near + 0.9 * noise).astype(np.float32)
        index.append(found[:0] if image in EMPTY_IMAGES else found)
    for query in range(QUERIES):
        seen = index[3 * query][: 4 + 6 * query]
        seen = seen + 0.4 * _STANDIN.value(f"asmk.query.{query}", seen.shape)
        other = 1.2 * _STANDIN.value(f"asmk.clutter.{query}", (10, dimensions))
        found = np.concatenate([seen, other]).astype(np.float32)
        queries.append(found[:0] if query == EMPTY_QUERY else found)
    return index, queries


def meta_of(dimensions: int, photos: int, **settings) -> dict:
    """Returns what an index of these settings says of itself."""
    about = {"contents": lists.CONTENTS, "variant": "dolg", "regions": False}
    about |= {"binary": True, "idf": False}
    about |= {"assignments": 1, "dimensions": dimensions, "counted": photos, "format_version": 1}
    return about | settings


def index_of(path, index, words: np.ndarray, **settings) -> lists.Inverted:
    """Indexes images, each an array of descriptors or a list of those of its regions."""
    ids = [f"image{i}" for i in range(len(index))]
    meta = meta_of(words.shape[1], len(ids), **settings)
    parts = [one if isinstance(one, list) else [one] for one in index]
    build.build_index(path, ids, parts.__getitem__, Codebook(words, {}), meta, "test")
    return lists.Inverted.open(path)


def scores_of(index: lists.Inverted, queries, assignments: int, **settings) -> np.ndarray:
    """Returns the scores of the images, float64 (Q, N)."""
    kernel = lists.kernel_of(index.meta, **settings)
    search = Search(index, kernel)
    described = [build.entries_of([one], index.codebook, kernel, assignments) for one in queries]
    return np.array([search.scores(*one) for one in described])


def make(folder: pathlib.Path) -> None:
    """Writes `local`, features of six photos, `codebook.npz`, `asmk`, an index, and `scores`."""
    rng = np.random.default_rng(0)
    photos = [(f"p{photo}", local_sets.draw(rng, 5)) for photo in range(6)]
    writing.write(folder / "local", photos, local_sets.LOCAL_META)
    local, book = {"local": str(folder / "local")}, str(folder / "codebook.npz")
    index = str(folder / "asmk")
    stages.codebook(stages.CodebookConfig(**local, output=book, words=4))
    stages.build(stages.BuildConfig(**local, codebook=book, output=index))
    stages.query(stages.QueryConfig(**local, index=index, output=str(folder / "scores")))
