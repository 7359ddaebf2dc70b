"""An index keeps the local features of its photos in step with them."""

import pathlib

import numpy as np
import pytest
import sealed
from halves import halves
from local_sets import LOCAL_META, draw, same
from set_meta import META

from dolg_tf.pipelines.checks import check_index
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import directory, stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import AddConfig, BuildConfig, RemoveConfig
from dolg_tf.retrieval.local import writing
from dolg_tf.stage.config import InputError

ROWS = halves(np.random.default_rng(0), 12, 9)
IDS = [f"{'äbc'[i % 3]}/{i}" for i in range(12)]  # not in order
FEATURES = [draw(np.random.default_rng(i), 7 + i) for i in range(12)]


def _set(path, numbers, **meta):
    """Writes the descriptors of some photos and, beside them, their local features."""
    ids = tuple(IDS[number] for number in numbers)
    descriptors.write(path, DescriptorSet(ids, ROWS[list(numbers)], META))
    photos = [(IDS[number], FEATURES[number]) for number in reversed(list(numbers))]
    writing.write(f"{path}.local", photos, LOCAL_META | {"dtype": "float32"} | meta)
    return {"descriptors": str(path), "local": f"{path}.local"}


def _build(path, numbers, **options):
    made = _set(path.with_name(f"{path.name}.set"), numbers)
    return stages.build(BuildConfig(**made, output=str(path), **options))


def _check(path, numbers):
    """Makes sure that an index has these photos, each with its own features."""
    index = Index.open(path)
    assert list(index.ids) == sorted(IDS[number] for number in numbers)
    rows = index.local.rows_of(index.ids)
    for id_, row in zip(index.ids, rows, strict=True):
        assert same(index.local[row], FEATURES[IDS.index(id_)])


def _remove(path, numbers):
    gone = path.with_name("gone.txt")
    gone.write_text("".join(f"{IDS[number]}\n" for number in numbers), encoding="utf-8")
    stages.remove(RemoveConfig(index=str(path), ids=str(gone)))


def _inodes(path):
    return {file.stat().st_ino for file in pathlib.Path(path).glob("descriptors-*")}


@pytest.fixture
def built(tmp_path):
    return _build(tmp_path / "index", range(10)).path


def test_local_features_stay_in_step(tmp_path, built):
    path = built
    assert directory.read_meta(path)["format_version"] == 3
    _check(path, range(10))
    before = _inodes(path / "local")
    stages.add(AddConfig(index=str(path), **_set(tmp_path / "more", [11])))
    _check(path, [*range(10), 11])
    assert before < _inodes(path / "local")  # what was there is not copied
    _remove(path, [0, 4, 11])
    left = [1, 2, 3, 5, 6, 7, 8, 9]
    _check(path, left)
    assert _inodes(path / "local") == before  # and what is left is neither
    stages.add(AddConfig(index=str(path), **_set(tmp_path / "again", [4])))
    _check(path, [*left, 4])
    _remove(path, left)
    _check(path, [4])
    assert not _inodes(path / "local") & before  # of which too little was left


def test_an_approximate_index_has_local_features(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    ids = [f"p{number}" for number in rng.permutation(256)]
    rows = halves(rng, 256, 9)
    descriptors.write(tmp_path / "set", DescriptorSet(tuple(ids), rows, META))
    photos = [(id_, draw(rng, 1 + number)) for number, id_ in enumerate(ids[:10])]
    photos += [(id_, draw(rng, 0)) for id_ in ids[10:]]
    writing.write(tmp_path / "local", photos, LOCAL_META)
    made = {name: str(tmp_path / name) for name in ("local", "index")}
    options = {"kind": "ivfpq", "nlist": 1, "m": 3, "nprobe": 1}
    found = stages.build(
        BuildConfig(
            descriptors=str(tmp_path / "set"), local=made["local"], output=made["index"], **options
        )
    )
    rows = found.local.rows_of(ids)
    assert [len(found.local[row]) for row in rows[:11]] == [*range(1, 11), 0]


def test_a_set_may_have_more_photos_in_any_order(tmp_path):
    made, more = _set(tmp_path / "set", range(4)), _set(tmp_path / "more", range(11, -1, -1))
    made["local"] = more["local"]
    path = stages.build(BuildConfig(**made, output=str(tmp_path / "index"))).path
    _check(path, range(4))


def test_a_calibration_leaves_local_features_where_they_are(built):
    directory.set_calibration(built, {"threshold": 0.5}, Index.open(built).meta)
    assert Index.open(built).threshold == 0.5
    _check(built, range(10))


def test_an_index_without_local_features_has_the_old_format(tmp_path):
    made = _set(tmp_path / "set", range(4)) | {"local": ""}
    index = stages.build(BuildConfig(**made, output=str(tmp_path / "index")))
    assert index.local is None and directory.read_meta(index.path)["format_version"] == 1


# --- what is refused -----------------------------------------------------------------


def test_local_features_of_other_photos(tmp_path):
    made = _set(tmp_path / "set", range(6))
    made["local"] = _set(tmp_path / "few", [0, 1, 2, 5])["local"]
    with pytest.raises(InputError, match=r"few.local lacks 2 of 6 photos, the first is 'ä/3'"):
        stages.build(BuildConfig(**made, output=str(tmp_path / "index")))
    assert not (tmp_path / "index").exists()


def test_local_features_of_another_model_are_meant(tmp_path):
    made = _set(tmp_path / "set", range(6), model_hash="delg")
    options = made | {"output": str(tmp_path / "index")}
    with pytest.raises(InputError, match=r"has model_hash 'delg'.*--other_local_model"):
        stages.build(BuildConfig(**options))
    path = stages.build(BuildConfig(other_local_model=True, **options)).path
    _check(path, range(6))
    stages.add(AddConfig(index=str(path), **_set(tmp_path / "n", [7], model_hash="delg")))
    _check(path, [*range(6), 7])
    with pytest.raises(InputError, match=r"index/local has model_hash 'delg'|has model_hash 'abc'"):
        stages.add(AddConfig(index=str(path), **_set(tmp_path / "old", [8])))


@pytest.mark.parametrize(
    ("meta", "told"),
    [({"upright": True}, "upright True"), ({"kind": "dolg"}, "kind 'dolg'")],
)
def test_local_features_made_otherwise(tmp_path, built, meta, told):
    added = _set(tmp_path / "more", [11], **meta)
    with pytest.raises(InputError, match=told):
        stages.add(AddConfig(index=str(built), **added))
    _check(built, range(10))


def test_local_features_come_with_photos_or_not_at_all(tmp_path, built):
    more = _set(tmp_path / "more", [11])
    with pytest.raises(InputError, match="has local features: give those of the added photos"):
        stages.add(AddConfig(index=str(built), descriptors=more["descriptors"]))
    without = _set(tmp_path / "set", range(4)) | {"local": ""}
    path = stages.build(BuildConfig(**without, output=str(tmp_path / "bare"))).path
    with pytest.raises(InputError, match=r"has no local features; build it with .*--local"):
        stages.add(AddConfig(index=str(path), **more))


def test_an_index_that_was_changed_since_it_was_opened(built):
    index, kept = Index.open(built), Index.open(built)
    assert len(kept.local) == 10
    _remove(built, [3])
    with pytest.raises(InputError, match="changed since it was opened; open it again"):
        _ = index.local
    [row] = kept.local.rows_of([IDS[3]])
    assert same(kept.local[row], FEATURES[3])  # it is still open


def test_dolg_verify_reads_all_features(built):
    assert check_index(built)[-1] == f"{sum(range(7, 17))} local features of model abc"
    file = next((built / "local").glob("descriptors-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"the features of 'ä/0' are damaged"):
        check_index(built)


@pytest.mark.parametrize("harm", ["gone", "other", "told"])
def test_damage(built, harm):
    if harm == "told":
        sealed.change(built / "meta.json", local=3)
        with pytest.raises(InputError, match=r"meta.json: damaged; build the index again"):
            Index.open(built)
        return
    file = built / "local" / "ids.txt"
    file.unlink() if harm == "gone" else file.write_text("x\n")
    with pytest.raises(InputError, match=r"local.*ids\.txt"):
        _ = Index.open(built).local
