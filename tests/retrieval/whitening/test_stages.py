import json

import numpy as np
import pytest
import sealed
from place_rows import photos_of
from set_meta import META

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.whitening.stages import ApplyConfig, FitConfig, apply, fit
from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.stage.config import InputError


def _save(path, rows, **meta):
    ids = tuple(f"p/{row}" for row in range(len(rows)))
    descriptors.write(path, DescriptorSet(ids, np.asarray(rows, np.float32), META | meta))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 8)) * np.arange(1, 9) + 3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    _save(tmp_path / "set", rows)
    _save(tmp_path / "other_model", rows, model_hash="xyz")
    _save(tmp_path / "narrow", rows[:, :5] / np.linalg.norm(rows[:, :5], axis=1, keepdims=True))
    np.save(tmp_path / "rows.npy", rows)
    lines = [f"p/{row},{row // 5}" for row in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,landmark", *lines]) + "\n")
    lines = [f"p/{row},p/{row + 1}" for row in range(39) if row % 5 < 4]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,positive", *lines]) + "\n")
    return tmp_path


def _fit(folder, output="w.npz", photos="set", **changes):
    paths = {"descriptors": str(folder / photos), "output": str(folder / output)}
    fit(FitConfig(**paths, **changes))
    return folder / output


def _apply(folder, photos="set", whitening="w.npz", output="white"):
    names = {"descriptors": photos, "whitening": whitening, "output": output}
    apply(ApplyConfig(**{key: str(folder / name) for key, name in names.items()}))
    return descriptors.read(folder / output)


@pytest.mark.parametrize("flags", [{}, {"dimensions": 3, "power": 0.5}, {"labels_csv": "labels"}])
def test_sets_are_whitened_by_what_the_file_says(folder, flags):
    flags = {key: str(folder / f"{x}.csv") if x == "labels" else x for key, x in flags.items()}
    stored = load_whitening(_fit(folder, **flags), 8)
    assert stored.model_hash == "abc" and stored.projection.shape == (8, flags.get("dimensions", 8))
    found, before = _apply(folder), descriptors.read(folder / "set")
    for row, x in zip(found.descriptors, before.descriptors, strict=True):
        expected = (x.astype(np.float64) - stored.mean) @ stored.projection
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    assert found.ids == before.ids
    assert found.meta == before.meta | {"whitening": stored.sha256}


def test_labels_and_their_pairs_are_the_same(folder):
    by_labels = _fit(folder, "a.npz", labels_csv=str(folder / "labels.csv"))
    by_pairs = _fit(folder, "b.npz", pairs_csv=str(folder / "pairs.csv"))
    assert by_labels.read_bytes() == by_pairs.read_bytes() != _fit(folder, "c.npz").read_bytes()


def test_an_npy_can_be_learned_from(folder):
    stored = load_whitening(_fit(folder, photos="rows.npy"), 8)
    assert stored.model_hash == ""
    assert len(_apply(folder, "other_model")) == 40
    with pytest.raises(InputError, match="have no ids"):
        _fit(folder, "l.npz", "rows.npy", labels_csv=str(folder / "labels.csv"))


def test_half_precision_stays(folder):
    rows = descriptors.read(folder / "set").descriptors[:]
    _save(folder / "half", rows, dtype="float16")
    _fit(folder)
    found, whole = _apply(folder, "half", output="w16"), _apply(folder, output="w32")
    assert found.descriptors.arrays[0].dtype == np.float16 and found.meta["dtype"] == "float16"
    np.testing.assert_allclose(found.descriptors[:], whole.descriptors[:], atol=5e-3)


def test_what_is_finished_is_kept_and_nothing_else_replaced(folder, caplog):
    caplog.set_level("INFO")
    _fit(folder)
    before = _apply(folder).meta
    assert _apply(folder).meta == before and "kept, it is up to date" in caplog.text
    with pytest.raises(InputError, match=r"w\.npz exists; give --overwrite"):
        _fit(folder)
    _fit(folder, overwrite=True, dimensions=2)
    with pytest.raises(InputError, match="was made with whitening="):
        _apply(folder)
    with pytest.raises(InputError, match="was made with whitening=None"):
        _apply(folder, output="set")
    ids = json.dumps(sorted(descriptors.read(folder / "set").ids, reverse=True))
    (folder / "white" / "ids.txt").write_text("\n".join(json.loads(ids)) + "\n")
    sealed.forget(folder / "white" / "meta.json")
    _fit(folder, overwrite=True)
    with pytest.raises(InputError, match="holds other photos"):
        _apply(folder)
    (folder / "begun" / "unfinished").mkdir(parents=True)
    with pytest.raises(InputError, match="begun is an unfinished extraction; finish it"):
        _apply(folder, output="begun")
    assert (folder / "begun" / "unfinished").exists()


def test_what_does_not_fit_is_refused(folder):
    _fit(folder)
    _apply(folder)
    for changes, told in [
        ({"photos": "other_model"}, "learned on descriptors of model abc, .* is of xyz"),
        ({"photos": "narrow"}, "do not fit descriptors of 5"),
        ({"photos": "white"}, "whitened already"),
        ({"photos": "rows.npy"}, "cannot record its whitening"),
        ({"photos": "none"}, "no such descriptor set"),
        ({"whitening": "none.npz"}, "no .npz with the arrays"),
    ]:
        with pytest.raises(InputError, match=told):
            _apply(folder, output="new", **changes)
    assert not (folder / "new").exists()
    with pytest.raises(InputError, match="whitened already"):
        _fit(folder, "new.npz", "white")
    assert not (folder / "new.npz").exists()


def test_a_photo_that_is_the_mean_is_refused(folder):
    rows = np.eye(3, 8)
    write_whitening(folder / "w.npz", rows[2], np.eye(8), "")
    _save(folder / "means", rows)
    with pytest.raises(InputError, match="whitening leaves nothing of 'p/2'"):
        _apply(folder, "means")
    assert not (folder / "white").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"labels_csv": "a", "pairs_csv": "b"}, "give one of"),
        ({"labels_csv": "a", "groups": True}, "give one of"),
        ({"power": 0.5, "groups": True}, "other whitenings have none"),
        ({"power": 1.5}, "must be from 0 to 1"),
        ({"power": float("nan")}, "must be from 0 to 1"),
        ({"power": 0.5, "labels_csv": "a"}, "other whitenings have none"),
        ({"dimensions": -1}, "at least 0"),
        ({"output": "w"}, "must end in .npz"),
    ],
)
def test_bad_flags_are_refused(flags, told):
    with pytest.raises(InputError, match=told):
        FitConfig(**{"descriptors": "d", "output": "w.npz"} | flags)


def test_groups_need_no_labels(folder, caplog):
    rows, _ = photos_of([6] * 12)  # they vary in 12 - 1 + 24 directions, and by their norm
    _save(folder / "photos", rows)
    with caplog.at_level("INFO"):
        path = _fit(folder, "g.npz", "photos", groups=True)
    assert "groups of" in caplog.text and "estimated purity" in caplog.text
    stored = load_whitening(path, rows.shape[1])
    assert stored.model_hash == "abc" and stored.projection.shape == (128, 36)
    assert len(_apply(folder, "photos", "g.npz")) == 72
    again = _fit(folder, "h.npz", "photos", groups=True, dimensions=9)
    assert load_whitening(again, 128).projection.shape == (128, 9)


def test_photos_without_groups_stay_as_they_are(folder):
    _save(folder / "single", photos_of([1] * 80)[0])
    with pytest.raises(InputError, match=r"no whitening by groups .*search these descriptors as"):
        _fit(folder, "g.npz", "single", groups=True)
    assert not (folder / "g.npz").exists()
