"""DELF's files of local features: byte for byte, hostile ones, and whole folders."""

import json
import pathlib
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from local_sets import LOCAL_META, draw, same
from set_meta import META

from dolg_tf.retrieval import datum_io, descriptors
from dolg_tf.retrieval.datum_io import DatumConfig, convert
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.local import delf_files, feature_set, writing
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.stage.config import InputError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
IDS = ("z/a", "b", "a/é")


def golden(count=None):
    with np.load(GOLDEN / "delf_file.npz") as found:
        names = ("locations", "scales", "attention", "descriptors")
        arrays = [found[name][:count] for name in names]
        return LocalFeatures(*arrays, (700, 700)), found["orientations"]


def test_bytes_are_those_of_delf():
    features, orientations = golden()
    assert delf_files.encode(features) == (GOLDEN / "delf_file.delf").read_bytes()
    few = golden(len(orientations))[0]
    turned = (GOLDEN / "delf_file_orientations.delf").read_bytes()
    assert delf_files.encode(few, orientations) == turned
    assert delf_files.encode(draw(np.random.default_rng(0), 0)) == b""


def test_files_of_delf_are_read():
    features, turned = delf_files.read(GOLDEN / "delf_file.delf")
    expected, orientations = golden()
    bottom, right = np.ceil(expected.positions.max(0) + 1).astype(int).tolist()
    assert same(features, LocalFeatures(*list(vars(expected).values())[:4], (bottom, right)))
    assert not turned.any() and features.descriptors.dtype == np.float32
    turned = delf_files.read(GOLDEN / "delf_file_orientations.delf")[1]
    np.testing.assert_array_equal(turned, orientations)
    none, _ = delf_files.decode(b"")
    assert len(none) == 0 and none.positions.shape == (0, 2) and none.size == (0, 0)


def feature(row, dims=None):
    """A file with a feature of these numbers."""
    message = datum_io.protos.delf_class()()
    one = message.feature.add(x=1, y=2, scale=1, orientation=0, strength=3)
    one.descriptor.shape.dim.extend([len(row)] if dims is None else dims)
    one.descriptor.float_list.value.extend(row)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x0a\x64", "cut short"),
        (
            feature([1.0, 0.0], [1 << 40]),
            r"feature 0 has 2 numbers and the shape \(1099511627776,\)",
        ),
        (feature([1.0, 0.0], [2, 1]), "has 2 numbers and the shape"),
        (feature([1.0, 0.0]) + feature([1.0]), "feature 1 has 1 numbers"),
        (feature([float("nan"), 0.0]), "not finite"),
        (b"\x0a\x00" * (delf_files.MAX_BYTES // 2 + 1), "bytes, more than the 33,554,432"),
    ],
)
def test_hostile_bytes(data, told, tmp_path):
    (tmp_path / "a.delf").write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.delf: .*{told}"):
        delf_files.read(tmp_path / "a.delf")


def test_positions_beyond_all_photos_make_a_size_that_can_be_stored():
    message = datum_io.protos.delf_class()()
    message.feature.add(x=3e38, y=-3e38).descriptor.shape.dim.append(0)
    assert delf_files.decode(message.SerializeToString())[0].size == (0, 2**30)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_damage_is_an_input_error_or_features(data):
    found = bytearray((GOLDEN / "delf_file_orientations.delf").read_bytes())
    at = data.draw(st.integers(0, len(found) - 1))
    found[at : at + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=6))
    try:
        features, _ = delf_files.decode(bytes(found))
    except InputError:
        return
    assert np.isfinite(features.positions).all() and min(features.size) >= 0


# --- folders ----------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path):
    """A descriptor set and the local one beside it, whose ids are not sorted."""
    rng = np.random.default_rng(1)
    rows = np.eye(3, 8, dtype=np.float32)
    descriptors.write(tmp_path / "set", DescriptorSet(IDS, rows, META))
    photos = zip(IDS, (5, 0, 9), strict=True)
    drawn = {id_: draw(rng, count, 16, (301, 402)) for id_, count in photos}
    writing.write(tmp_path / "set.local", drawn.items(), LOCAL_META)
    return tmp_path / "set", drawn


def run(source, output, **options):
    convert(DatumConfig(input=str(source), output=str(output), **options))


def contents(path):
    """All of a local set."""
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.suffix != ".json"}
    return files, feature_set.read(path).meta


@pytest.mark.parametrize("suffix", delf_files.SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "bits"])
def test_set_to_folder_and_back(both, tmp_path, dtype, suffix):
    path, drawn = both
    writing.write(f"{path}.local", drawn.items(), LOCAL_META | {"dtype": dtype})
    run(f"{path}.local", tmp_path / "folder", local_suffix=suffix)
    assert (tmp_path / f"folder/b{suffix}").read_bytes() == b""
    found = delf_files.read(tmp_path / f"folder/z/a{suffix}")[0]
    np.testing.assert_array_equal(found.positions, drawn["z/a"].positions)
    run(tmp_path / "folder", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "set.local")


def test_both_kinds_in_one_folder_as_delf_reads_them(both, tmp_path):
    path, _drawn = both
    run(path, tmp_path / "folder", local=f"{path}.local")
    names = [f"{id_}{suffix}" for id_ in IDS for suffix in (".delg_global", ".delg_local")]
    found = [file for file in (tmp_path / "folder").rglob("*") if file.is_file()]
    assert len(found) == 7 and all((tmp_path / "folder" / name).exists() for name in names)
    run(tmp_path / "folder", tmp_path / "again")
    assert contents(tmp_path / "again.local") == contents(tmp_path / "set.local")
    assert descriptors.read(tmp_path / "again").ids == IDS
    run(tmp_path / "folder", tmp_path / "again", overwrite=True)
    with pytest.raises(InputError, match=r"again\.local exists; give --overwrite"):
        shutil.rmtree(tmp_path / "again")
        run(tmp_path / "folder", tmp_path / "again")


def test_folder_of_delf_itself(both, tmp_path):
    path, drawn = both
    run(path, tmp_path / "folder", local=f"{path}.local")
    (tmp_path / "folder/dolg_meta.json").unlink()
    with pytest.raises(InputError, match="which network made it; give --model_hash"):
        run(tmp_path / "folder", tmp_path / "again")
    run(tmp_path / "folder", tmp_path / "again", model_hash="delg")
    found = feature_set.read(tmp_path / "again.local")
    assert found.ids == tuple(sorted(IDS)) and found.meta["model_hash"] == "delg"
    for id_, one in zip(found.ids, found, strict=True):
        np.testing.assert_array_equal(one.positions, drawn[id_].positions)


def test_descriptors_of_other_norms(both, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.delf").write_bytes(feature([3.0, 4.0]))
    with pytest.raises(InputError, match="a, local features: 1 of 1 rows are not of unit norm"):
        run(tmp_path / "folder", tmp_path / "again", model_hash="x")
    assert not (tmp_path / "again").exists()
    run(tmp_path / "folder", tmp_path / "again", model_hash="x", normalize=True)
    found = feature_set.read(tmp_path / "again")[0]
    np.testing.assert_allclose(found.descriptors, [[0.6, 0.8]], atol=1e-3)


def test_orientations_are_lost_aloud(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    shutil.copy(GOLDEN / "delf_file_orientations.delf", tmp_path / "folder/a.delf")
    run(tmp_path / "folder", tmp_path / "set", model_hash="x", normalize=True)
    assert "1 files have orientations, for which a set has no place" in caplog.text


def test_what_does_not_fit_is_refused(both, tmp_path):
    path, drawn = both
    local = f"{path}.local"
    with pytest.raises(InputError, match="is a local set already"):
        run(local, tmp_path / "folder", local=local)
    writing.write(tmp_path / "few", list(drawn.items())[:2], LOCAL_META)
    with pytest.raises(InputError, match="few lacks 1 of 3 photos"):
        run(path, tmp_path / "folder", local=str(tmp_path / "few"))
    writing.write(tmp_path / "other", drawn.items(), LOCAL_META | {"model_hash": "other"})
    with pytest.raises(InputError, match=r"photos of model other.* of one extraction"):
        run(path, tmp_path / "folder", local=str(tmp_path / "other"))
    run(local, tmp_path / "folder")
    with pytest.raises(InputError, match="is for sets"):
        run(tmp_path / "folder", tmp_path / "x", local=local)
    (tmp_path / "folder/b.delf").write_bytes(b"")
    with pytest.raises(InputError, match=r"has files \.delg_local and \.delf; keep one kind"):
        run(tmp_path / "folder", tmp_path / "x")
    (tmp_path / "folder/b.delf").unlink()
    about = json.loads((tmp_path / "folder/dolg_meta.json").read_text())
    del about["local"]
    (tmp_path / "folder/dolg_meta.json").write_text(json.dumps(about | {"ids": [], "meta": {}}))
    with pytest.raises(InputError, match=r"says nothing of the files \.delg_local"):
        run(tmp_path / "folder", tmp_path / "x")
    with pytest.raises(InputError, match="not a descriptor set, and --overwrite"):
        run(_global(path, tmp_path), local, overwrite=True)
    assert feature_set.read(local)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ({"sizes": [[1, 2]]}, "not 3 heights and widths"),
        ({"sizes": [[1, 2], [3], [4, 5]]}, "not 3 heights and widths"),
        ({"sizes": [[1, 2], [3, 4], [5, -6]]}, "not 3 heights and widths"),
        ({"sizes": [[1, 2], [3, 4], [5, 2**31]]}, "not 3 heights and widths"),
        ({"sizes": "many"}, "not 3 heights and widths"),
        ({"meta": {"model_hash": "x", "dtype": "int8"}}, "dtype is 'int8'; write the folder"),
    ],
)
def test_what_is_said_of_a_folder_is_checked(both, tmp_path, harm, told):
    run(f"{both[0]}.local", tmp_path / "folder")
    file = tmp_path / "folder/dolg_meta.json"
    about = json.loads(file.read_text())
    about["local"] |= harm
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match=told):
        run(tmp_path / "folder", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _global(path, tmp_path):
    run(path, tmp_path / "global")
    return tmp_path / "global"


@pytest.mark.parametrize("id_", ["/etc/x", "../x", "a/../../x"])
def test_ids_that_leave_the_folder(tmp_path, id_):
    writing.write(tmp_path / "set", [(id_, draw(np.random.default_rng(0), 1))], LOCAL_META)
    with pytest.raises(InputError, match="must be a path relative to a folder"):
        run(tmp_path / "set", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
