"""Inputs of `endurance.py` that hold local features, and what is made of them."""

import pathlib
from collections.abc import Callable

import numpy as np

SIZE, FEATURES, WORDS = 16, 20, 8


def set_of(ids: list[str], meta_of: Callable) -> Callable:
    """Returns what writes the local feature set of some photos, made as `meta_of(world)` says."""

    def make(world, path: pathlib.Path) -> None:
        from dolg_tf.retrieval.local import writing
        from dolg_tf.retrieval.local.features import LocalFeatures

        def features(id_: str) -> LocalFeatures:
            rng = np.random.default_rng(list(id_.encode()))
            rows = rng.standard_normal((FEATURES, SIZE)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            places = rng.uniform(0, 48, (FEATURES, 2)).astype(np.float32)
            strengths = np.sort(rng.random(FEATURES).astype(np.float32))[::-1]
            return LocalFeatures(places, np.ones(FEATURES, "f4"), strengths, rows, (48, 48))

        about = {"kind": "map", "reduction": None, "threshold": 0.0, "max_features": FEATURES}
        meta = meta_of(world) | about
        writing.write(path, ((id_, features(id_)) for id_ in ids), meta)

    return make


def codebook(world, path: pathlib.Path) -> None:
    """Writes a codebook of the photos' features."""
    from dolg_tf.retrieval.asmk import stages

    options = {"local": str(world["local"]), "output": str(path), "words": WORDS}
    stages.codebook(stages.CodebookConfig(**options))


def asmk_index(world, path: pathlib.Path) -> None:
    """Writes an ASMK index of the photos."""
    from dolg_tf.retrieval.asmk import stages

    options = {"local": str(world["local"]), "codebook": str(world["codebook.npz"])}
    stages.build(stages.BuildConfig(**options, output=str(path)))


def pca(world, path: pathlib.Path) -> None:
    """Writes DELF's files of a PCA."""
    from dolg_tf.retrieval import datum_io
    from dolg_tf.retrieval.whitening import delf

    path.mkdir()
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    for name, array in ((delf.MEAN, rng.standard_normal(SIZE)), (delf.PROJECTION, turned)):
        (path / name).write_bytes(datum_io.encode(array.astype(np.float32)))
