"""Local features are reduced: learned on a sample of all photos, and applied photo by photo."""

import numpy as np
import pytest
from local_sets import LOCAL_META, draw

from dolg_tf.retrieval.local import feature_set, writing
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.whitening import local
from dolg_tf.retrieval.whitening.stages import ApplyConfig, FitConfig, apply, fit
from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.stage.config import InputError

D = 12
COUNTS = (30, 0, 7, 60)


def photos(dimensions=D):
    """Features that vary by 1, 1/2, 1/3, ... in their directions, around one of them."""
    rng, drawn = np.random.default_rng(0), {}
    for number, count in enumerate(COUNTS):
        one = draw(rng, count, dimensions)
        rows = rng.standard_normal((count, dimensions)) / np.arange(1, dimensions + 1)
        rows[:, -1] += 2
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        arrays = one.positions, one.scales, one.strengths, rows
        drawn[f"p{number}"] = LocalFeatures(*arrays, one.size)
    return drawn


@pytest.fixture
def folder(tmp_path):
    meta = LOCAL_META | {"dtype": "float32"}
    writing.write(tmp_path / "set", photos().items(), meta, 50)
    return tmp_path


def _fit(folder, name="set", **options):
    path = str(folder / f"{len(list(folder.glob('*.npz')))}.npz")
    options = {"dimensions": 4} | options
    fit(FitConfig(descriptors=str(folder / name), local=True, output=path, **options))
    return path


def _apply(folder, whitening, output="reduced", name="set"):
    apply(
        ApplyConfig(
            descriptors=str(folder / name),
            local=True,
            whitening=whitening,
            output=str(folder / output),
        )
    )
    return feature_set.read(folder / output)


def by_hand(rows, dimensions, power):
    rows = rows.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    values, vectors = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    return rows.mean(0), vectors * values ** (-power / 2)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_fit_and_apply(folder, power, caplog):
    caplog.set_level("INFO")
    path = _fit(folder, power=power)
    drawn = photos()
    rows = np.concatenate([one.descriptors for one in drawn.values()])
    mean, projection = by_hand(rows, 4, power)
    stored = load_whitening(path, D)
    np.testing.assert_allclose(stored.mean, mean, atol=1e-3)  # the sample is in float16
    signs = np.sign((stored.projection * projection).sum(0))
    np.testing.assert_allclose(stored.projection, projection * signs, rtol=0.02, atol=0.02)
    assert stored.model_hash == "abc"
    assert "from 97 of 97 local features of 4 photos, length 12 to 4" in caplog.text
    found = _apply(folder, path)
    assert found.ids == tuple(drawn) and found.meta["dimensions"] == 4
    assert found.meta["reduction"] == stored.sha256 and found.meta["dtype"] == "float32"
    for id_, one in zip(found.ids, found, strict=True):
        expected = (drawn[id_].descriptors - stored.mean) @ stored.projection
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(one.descriptors, expected, atol=1e-5)
        np.testing.assert_array_equal(one.positions, drawn[id_].positions)
        assert one.size == drawn[id_].size


def test_a_sample_is_of_all_photos_and_always_the_same(folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(local, "_SAMPLE_BYTES", 2 * D * 40)
    one, other = (load_whitening(_fit(folder), D) for _ in range(2))
    assert one.sha256 == other.sha256 and "from 40 of 97 local features" in caplog.text
    rows = local._sample(feature_set.read(folder / "set"), 40)
    drawn = [one.descriptors.astype(np.float16) for one in photos().values()]
    counts = [sum((row == part).all(1).any() for row in rows) for part in drawn if len(part)]
    assert sum(counts) == 40 == len(np.unique(rows, axis=0)) and min(counts) > 0


def test_lengths(tmp_path):
    rng = np.random.default_rng(0)
    for size, kept in ((130, 128), (9, 9)):
        writing.write(tmp_path / str(size), [("a", draw(rng, 300, size))], LOCAL_META)
        path = _fit(tmp_path, str(size), dimensions=0)
        assert load_whitening(path, size).projection.shape == (size, kept)


def test_an_output_that_stands(folder, caplog):
    caplog.set_level("INFO")
    path = _fit(folder)
    _apply(folder, path)
    _apply(folder, path)
    assert "kept, it is up to date" in caplog.text
    with pytest.raises(InputError, match=r"is not .*set, reduced in this way; delete it"):
        _apply(folder, _fit(folder, power=0.0))
    (folder / "mine").mkdir()
    with pytest.raises(InputError, match=r"mine is not .*set, reduced in this way"):
        _apply(folder, path, "mine")


def test_what_cannot_be_reduced(folder):
    path = _fit(folder)
    _apply(folder, path)
    with pytest.raises(InputError, match="reduced is reduced already, with"):
        _apply(folder, path, "again", "reduced")
    meta = LOCAL_META | {"dtype": "bits"}
    writing.write(folder / "bits", photos().items(), meta)
    for do in (_fit, lambda *_: _apply(folder, path, "x", "bits")):
        with pytest.raises(InputError, match="bits holds signs alone"):
            do(folder, "bits")
    write_whitening(folder / "n.npz", np.zeros(D), np.eye(D), "other")
    with pytest.raises(InputError, match="was learned on descriptors of model other"):
        _apply(folder, str(folder / "n.npz"), "x")
    rng = np.random.default_rng(0)
    writing.write(folder / "none", [("a", draw(rng, 0))], LOCAL_META)
    with pytest.raises(InputError, match="no photo has a local feature"):
        _fit(folder, "none")


@pytest.mark.parametrize(
    "options", [{"groups": True}, {"labels_csv": "x.csv"}, {"normalize": True}]
)
def test_options_that_do_not_go_together(options):
    with pytest.raises(InputError, match=f"--{next(iter(options))}=.* is not for --local"):
        FitConfig(descriptors="s", output="w.npz", local=True, **options)
