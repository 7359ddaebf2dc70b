"""Local features of an extraction, by a describer without network."""

import functools
import os
import pickle
import shutil

import numpy as np
import pytest
from kill_at_steps import killed_at
from PIL import Image

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import shards as unfinished
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.extract.photos import PhotosConfig
from dolg_tf.retrieval.extract.stage import describe_photos
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local import shards as local_shards
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.local.making import LocalConfig, making
from dolg_tf.retrieval.local.writing import SetWriter
from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.stage.config import InputError

ABOUT = {
    "kind": "map",
    "dimensions": 6,
    "scales": [0.5, 1.0],
    "threshold": 100.0,
    "reduction": None,
}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(unfinished, "SHARD_PHOTOS", 3)
    monkeypatch.setattr(local_shards, "_GROUP", 2)


def colours(batch):
    means = batch.mean(axis=(1, 2), dtype=np.float64)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def find(image, scales, max_features, threshold):
    """A feature per cell of 8 x 8 pixels and scale, as strong as the cell is bright."""
    rows = []
    for scale in scales:
        for i, j in np.ndindex(image.shape[0] // 8, image.shape[1] // 8):
            cell = image[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].astype(np.float32)
            means = np.concatenate([cell.mean((0, 1)), cell.std((0, 1))]) - 90
            rows.append((cell.mean(), 8 * i, 8 * j, 1 / scale, *means / np.linalg.norm(means)))
    rows = np.array([row for row in rows if row[0] >= threshold], np.float32).reshape(-1, 10)
    rows = rows[np.argsort(-rows[:, 0], kind="stable")[:max_features]]
    return LocalFeatures(rows[:, 1:3], rows[:, 3], rows[:, 0], rows[:, 4:], image.shape[:2])


def run(
    photos,
    output,
    *,
    seen=None,
    most=1000,
    error=KeyboardInterrupt,
    part=(0, 1),
    about=ABOUT,
    local=(),
    with_local=True,
    **options,
):
    """Extracts both sets; `error` is raised when more than `most` photos come."""
    settings = PhotosConfig(images=str(photos), output=str(output), **options)
    seen = [] if seen is None else seen

    def counting(image, *asked):
        seen.append(image.shape)
        if len(seen) > most:
            raise error
        return find(image, *asked)

    describer = Describer("m", (1.0,), None, lambda: colours, about, lambda: (colours, counting))
    how = making(LocalConfig(local=True, **dict(local)), about, "model", "m")
    found = describe_photos(settings, describer, part=part, local=how if with_local else None)
    return found and (found, feature_set.read(f"{output}.local"))


@pytest.fixture
def expected(photos, tmp_path):
    return contents(run(photos, tmp_path / "expected")[1])


def contents(found):
    """What a set holds, as plain values, without what it is called."""
    stored = [tuple(array.tobytes() for array in found.stored(row)) for row in range(len(found))]
    return found.ids, found.sizes.tolist(), stored, found.meta


def test_both_sets_are_of_the_same_photos(photos, tmp_path):
    rows, found = run(photos, tmp_path / "set")
    assert found.ids == rows.ids == tuple(map(str, range(10)))
    for number, one in enumerate(found):
        image = np.asarray(Image.open(photos / f"{number}.png"))
        alone = find(image, (0.5, 1.0), 1000, 100.0)
        assert len(one) == len(alone) > 5 and one.size == image.shape[:2]
        np.testing.assert_array_equal(one.positions, alone.positions)
        np.testing.assert_allclose(one.descriptors, alone.descriptors, atol=5e-4)
    about = {"kind": "map", "dimensions": 6, "reduction": None, "threshold": 100.0}
    about |= {"scales": [0.5, 1.0], "dtype": "float16", "max_features": 1000, "crop": False}
    about |= {"model_hash": "m", "whitening": None, "bad": [], "upright": True, "max_side": 1024}
    about |= {key: rows.meta[key] for key in ("images", "image_root", "format_version")}
    assert found.meta == about
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "set", "set.local"]
    assert not (tmp_path / "set" / descriptors.UNFINISHED).exists()
    again = run(photos, tmp_path / "set", most=0)
    assert contents(again[1]) == contents(found)


def test_options_reach_the_model(photos, tmp_path):
    local = {
        "local_scales": (2.0,),
        "max_features": 7,
        "local_threshold": 120,
        "local_dtype": "bits",
    }
    found = run(photos, tmp_path / "set", local=local)[1]
    assert found.counts.max() == 7 and (found[0].scales == 0.5).all()
    assert min(one.strengths.min() for one in found if len(one)) >= 120
    assert found.shards[0].descriptors.dtype == np.uint8
    assert found.meta["threshold"] == 120.0 and found.meta["dtype"] == "bits"


def test_positions_are_those_of_the_photo_before_it_was_shrunk(photos, tmp_path):
    found = run(photos, tmp_path / "set", max_side=25)[1]
    assert found[0].size == (40, 50) and found[1].size == (50, 40)
    np.testing.assert_array_equal(np.unique(found[0].positions[:, 0]) % 16, 0)
    assert found[0].positions.max(0).tolist() == [16, 32]  # of 20 x 25 pixels: 8 and 16


def test_positions_of_a_query_begin_at_its_box(photos, tmp_path):
    truth = {
        "imlist": ["1"],
        "qimlist": ["0"],
        "gnd": [{"bbx": [5, 3, 45, 35], "easy": [0], "hard": [], "junk": []}],
    }
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(truth))
    options = {"image_root": str(photos), "subset": "query", "max_side": 25}
    found = run(tmp_path / "gnd_x.pkl", tmp_path / "set", **options)[1]
    assert found[0].size == (32, 40) and found[0].positions.max(0).tolist() == [16, 16]
    assert found.meta["crop"] is True and found.meta["query_scale"] == "photo"


def test_no_photo_is_described_twice_after_an_interruption(photos, tmp_path, expected):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "set", seen=seen, most=8, batch_size=1)
    assert not (tmp_path / "set.local").exists()
    with pytest.raises(InputError, match="unfinished: 2 of 4 shards"):
        descriptors.read(tmp_path / "set")
    again = []
    assert contents(run(photos, tmp_path / "set", seen=again)[1]) == expected
    assert len(seen) == 9 and len(again) == 4


def test_shards_are_smaller_with_local_features(photos, tmp_path, expected, monkeypatch):
    monkeypatch.setattr(unfinished, "LOCAL_SHARD_PHOTOS", 2)
    assert unfinished.shard_photos(False) == 3
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "set", seen=seen, most=5)
    again = []
    assert contents(run(photos, tmp_path / "set", seen=again)[1]) == expected
    assert len(seen) + len(again) == 6 + 10 - 4  # two shards of two were kept


def test_parts_make_the_same_set(photos, tmp_path, expected):
    assert run(photos, tmp_path / "set", part=(1, 2)) is None
    assert contents(run(photos, tmp_path / "set", part=(0, 2))[1]) == expected


def _steps(work, module_files):
    """Kills `work` before every 29th of its lines in these files, in a process of its own."""
    step = 0
    while killed_at(step, work, module_files):
        yield
        step += 29


def test_a_kill_while_sets_are_put_together_loses_nothing(photos, tmp_path, expected, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    begun = tmp_path / "begun"
    with monkeypatch.context() as patch:
        patch.setattr(unfinished.UnfinishedSet, "finish", lambda *_: False)
        assert run(photos, begun) is None
    output, killed = tmp_path / "set", 0
    shutil.copytree(begun, output)
    for _ in _steps(
        functools.partial(run, photos, output, most=0), {local_shards.__file__, unfinished.__file__}
    ):
        if (output / "meta.json").exists():
            assert contents(feature_set.read(f"{output}.local")) == expected
        killed += 1
        assert contents(run(photos, output, most=0)[1]) == expected
        shutil.rmtree(output)
        shutil.rmtree(f"{output}.local")
        shutil.copytree(begun, output)
    assert killed > 5


def test_a_kill_while_a_shard_is_removed_loses_nothing(photos, tmp_path, expected, monkeypatch):
    remove = shutil.rmtree

    def killed(path, *arguments, **options):
        if path.name.startswith("local-0"):
            (path / "meta.json").unlink()
            raise KeyboardInterrupt
        remove(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local_shards.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "set")
    assert contents(run(photos, tmp_path / "set", most=0)[1]) == expected


def test_no_more_than_a_group_is_on_the_disk_twice(photos, tmp_path, monkeypatch):
    join, left = local_shards.linking.join, []

    def counting(*arguments):
        join(*arguments)
        left.append(len(list((tmp_path / "set/unfinished").glob("local-*-of-*"))))

    monkeypatch.setattr(local_shards.linking, "join", counting)
    run(photos, tmp_path / "set")
    assert left == [4, 2, 0]


@pytest.mark.parametrize("part", ["descriptors", "positions"])
def test_a_damaged_shard_is_done_again(photos, tmp_path, expected, part, caplog):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "set", most=8, batch_size=1)
    shard = tmp_path / "set" / descriptors.UNFINISHED / "local-00001-of-00004"
    (shard / f"{part}-00000-of-00001.npy").unlink()
    seen = []
    assert contents(run(photos, tmp_path / "set", seen=seen)[1]) == expected
    assert len(seen) == 7 and "local features are missing or damaged" in caplog.text


def test_a_photo_too_large_for_either_is_in_neither(photos, tmp_path, monkeypatch):
    def little(batch):
        if len(batch) > 1 or batch.shape[1] == 50:
            raise MemoryError
        return colours(batch)

    def find_little(image, *asked):
        if image.shape[0] == 33:
            raise MemoryError
        return find(image, *asked)

    settings = PhotosConfig(images=str(photos), output=str(tmp_path / "set"), max_bad=6)
    describer = Describer("m", (1.0,), None, None, ABOUT, lambda: (little, find_little))
    how = making(LocalConfig(local=True), ABOUT, "model", "m")
    rows = describe_photos(settings, describer, local=how)
    found = feature_set.read(tmp_path / "set.local")
    assert rows.ids == found.ids == ("0", "3", "6", "9") and len(found.meta["bad"]) == 6
    assert "47 x 33 pixels are too many for the memory" in str(found.meta["bad"])
    for id_, one in zip(found.ids, found, strict=True):
        alone = find(np.asarray(Image.open(photos / f"{id_}.png")), (0.5, 1.0), 1000, 100.0)
        np.testing.assert_array_equal(one.positions, alone.positions)


def test_other_settings_are_refused(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "set", most=8, batch_size=1)
    with pytest.raises(InputError, match=r"set\.local was begun with max_features=1000, not 5"):
        run(photos, tmp_path / "set", local={"max_features": 5})
    with pytest.raises(InputError, match="set was begun with local=True, not False"):
        run(photos, tmp_path / "set", with_local=False)
    run(photos, tmp_path / "set")
    with pytest.raises(InputError, match=r"set.local was made with threshold=100.0, not 3"):
        run(photos, tmp_path / "set", local={"local_threshold": 3})
    shutil.rmtree(tmp_path / "set.local")
    with pytest.raises(InputError, match="set was made without local features; choose another"):
        run(photos, tmp_path / "set")


def test_what_is_not_ours_is_not_replaced(photos, tmp_path):
    (tmp_path / "set.local").mkdir()
    (tmp_path / "set.local/mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"set.local exists and is not a local feature set"):
        run(photos, tmp_path / "set")
    assert (tmp_path / "set.local/mine.txt").exists()


def test_a_full_disk(photos, tmp_path, expected, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "finish", full)
        with pytest.raises(InputError, match=r"set.local cannot be written .*No space left.*again"):
            run(photos, tmp_path / "set")
    assert contents(run(photos, tmp_path / "set")[1]) == expected


def test_no_feature_reaches_the_threshold(photos, tmp_path, caplog):
    found = run(photos, tmp_path / "set", local={"local_threshold": 1e6})[1]
    assert found.counts.sum() == 0 and len(found) == 10
    assert "10 of 10 photos have no local feature whose strength reaches" in caplog.text


def test_reduction(photos, tmp_path):
    rng = np.random.default_rng(0)
    mean, projection = rng.standard_normal(6) / 10, rng.standard_normal((6, 4))
    write_whitening(tmp_path / "r.npz", mean, projection, "m")
    write_whitening(tmp_path / "other.npz", mean, projection, "n")
    local = {"local_reduction": str(tmp_path / "r.npz")}
    found = run(photos, tmp_path / "set", local=local)[1]
    whole = run(photos, tmp_path / "whole")[1]
    assert found.meta["dimensions"] == 4
    assert found.meta["reduction"] == load_whitening(tmp_path / "r.npz", 6).sha256
    rows = (whole[3].descriptors - mean) @ projection
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found[3].descriptors, rows, atol=5e-3)
    with pytest.raises(
        InputError, match=r"--local_reduction=.*was learned on descriptors of model n"
    ):
        run(photos, tmp_path / "x", local={"local_reduction": str(tmp_path / "other.npz")})
    inside = ABOUT | {"reduction": {"sha256": "ab"}}
    with pytest.raises(InputError, match="holds a reduction of its local features already"):
        run(photos, tmp_path / "x", local=local, about=inside)
    assert run(photos, tmp_path / "x", about=inside)[1].meta["reduction"] == "ab"


def test_a_model_that_says_nothing_of_its_local_features(photos, tmp_path):
    with pytest.raises(InputError, match="give --local_scales, or export it again"):
        run(photos, tmp_path / "set", about=None)
    with pytest.raises(InputError, match="give --local_threshold, or export it again"):
        run(photos, tmp_path / "set", about=None, local={"local_scales": (1.0,)})
    local = {"local_scales": (1.0,), "local_threshold": 100.0}
    found = run(photos, tmp_path / "set", about=None, local=local)[1]
    assert (found.meta["kind"], found.meta["dimensions"]) == ("delg", 6)
    with pytest.raises(InputError, match="does not say how long its local descriptors are"):
        run(photos, tmp_path / "x", about=None, local=local | {"local_reduction": "r.npz"})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"local": True, "local_scales": (0.0,)}, "--local_scales=0.0: each must be positive"),
        ({"local": True, "max_features": 0}, "--max_features=0"),
        ({"local": True, "local_threshold": float("nan")}, "--local_threshold=nan"),
        ({"local_dtype": "bits"}, "--local_dtype is for local features; give --local too"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(InputError, match=told):
        LocalConfig(**options)
