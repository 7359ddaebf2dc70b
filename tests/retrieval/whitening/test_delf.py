"""DELF's PCA files become a reduction that does what DELF does with them."""

import pathlib

import numpy as np
import pytest

from dolg_tf.retrieval import datum_io
from dolg_tf.retrieval.whitening import delf
from dolg_tf.runtime.whitening import load_whitening
from dolg_tf.stage.config import InputError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden/delf_pca.npz"


@pytest.fixture
def folder(tmp_path):
    golden = np.load(GOLDEN)
    named = {delf.MEAN: "mean", delf.PROJECTION: "matrix", "variances.datum": "variances"}
    for file, name in named.items():
        (tmp_path / file).write_bytes(datum_io.encode(golden[name]))
    return tmp_path


def _import(folder, **options):
    options = {"datum": str(folder), "dimensions": 4, "output": str(folder / "out.npz")} | options
    delf.convert(delf.ImportConfig(**options))
    return load_whitening(options["output"], 8)


@pytest.mark.parametrize("whitened", [False, True])
def test_it_reduces_as_delf(folder, whitened):
    golden = np.load(GOLDEN)
    variances = {"variances": str(folder / "variances.datum")} if whitened else {}
    rows = golden["descriptors"]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    found = _import(folder, **variances).apply(rows)
    np.testing.assert_allclose(found, golden["whitened" if whitened else "reduced"], atol=1e-6)


def test_files_that_do_not_fit_are_refused(folder):
    with pytest.raises(InputError, match=r"--dimensions=9: pca_proj_mat\.datum has 8"):
        _import(folder, dimensions=9)
    (folder / "variances.datum").write_bytes(datum_io.encode(np.zeros(8)))
    with pytest.raises(InputError, match="must hold 4 numbers or more, above 0"):
        _import(folder, variances=str(folder / "variances.datum"))
    (folder / delf.MEAN).write_bytes(datum_io.encode(np.zeros(7)))
    with pytest.raises(InputError, match=r"shape \(8, 8\) does not fit mean\.datum of 7"):
        _import(folder)
    assert not (folder / "out.npz").exists()
