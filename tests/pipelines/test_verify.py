"""Everything that the stages leave passes as written, and damage of each kind is named."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import asmk_images
import demo_world
import numpy as np
import pytest
import sealed
import tensorflow as tf
import tiny

from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.pipelines.verify import KINDS, VerifyConfig, verify
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.local import feature_set
from dolg_tf.stage import checksums
from dolg_tf.stage.config import InputError
from dolg_tf.training.loop import train

ABOUT = {
    "format_version": 1,
    "mode": "kaggle",
    "preprocessing": {},
    "scales": [1.0],
    "precision": "float32",
    "whitening": None,
    "weights_sha256": "abcdef0123456789",
    "provenance": {},
}


def _descriptor(image):
    """A unit row (B, 3) of photos (B, H, W, 3): their mean colours."""
    return tf.math.l2_normalize(tf.reduce_mean(tf.cast(image, tf.float32), (1, 2)), axis=-1)


def _save_export(path: pathlib.Path, describe=_descriptor) -> None:
    """A SavedModel with the signature of mode kaggle."""
    spec = [tf.TensorSpec([None, None, 3], tf.uint8, "input_image")]

    @tf.function(input_signature=spec)
    def serve(input_image):
        return {"global_descriptor": describe(input_image[None])[0]}

    tf.saved_model.save(tf.Module(), str(path), {"serving_default": serve})
    (path / "assets.extra").mkdir()
    (path / "assets.extra/dolg.json").write_text(json.dumps(ABOUT))


def _save_litert(path: pathlib.Path) -> None:
    spec = [tf.TensorSpec([None, None, None, 3], tf.float32, "image")]
    function = tf.function(_descriptor, input_signature=spec)
    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dolg.json", json.dumps(ABOUT))


def _save_onnx(path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx")
    floats, nodes = onnx.TensorProto.FLOAT, onnx.helper.make_node
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [1, 2])
    graph = onnx.helper.make_graph(
        [
            nodes("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            nodes("LpNormalization", ["mean"], ["descriptor"], axis=1, p=2),
        ],
        "colours",
        [onnx.helper.make_tensor_value_info("image", floats, ["b", "h", "w", 3])],
        [onnx.helper.make_tensor_value_info("descriptor", floats, ["b", 3])],
        [axes],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in ABOUT.items()})
    onnx.save(model, str(path))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Folder of one sound thing of each kind; no test may change it."""
    folder = tmp_path_factory.mktemp("sound")
    demo_world.make(folder / "world")
    for name in ("set", "index"):
        shutil.move(folder / "world" / name, folder / name)
    asmk_images.make(folder)
    data = tiny.write_records(folder / "records")
    train(tiny.MODEL, data, tiny.recipe(folder / "run", max_steps=2, checkpoint_every=1))
    save_dolg(build_dolg(tiny.MODEL, seed=0), tiny.MODEL, folder / "model", {"source": "test"})
    _save_export(folder / "export")
    _save_litert(folder / "net.tflite")
    _save_onnx(folder / "net.onnx")
    return folder


@pytest.fixture
def copied(sound, tmp_path):
    """Function of a name to a copy of that thing, to be damaged."""

    def copy(name: str) -> pathlib.Path:
        place = tmp_path / name
        if (sound / name).is_dir():
            shutil.copytree(sound / name, place)
        else:
            shutil.copyfile(sound / name, place)
        return place

    return copy


def _verify(path, **options):
    return verify(VerifyConfig(path=str(path), processes=0, **options))


def _flip(path: pathlib.Path, place: int) -> None:
    """Flips the bits of one byte; a negative place counts from the end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def _cut(path: pathlib.Path, parts: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(parts * len(data))])


def _other_ids(path: pathlib.Path) -> None:
    sealed.forget(path / "meta.json")
    (path / "ids.txt").write_text("red\ngreen\n")


# --- sound ---------------------------------------------------------------------------


SOUND = [
    ("records", "records", "44 records"),
    ("records/train-00000-of-00001", "records", "32 records"),
    ("records/train-*", "records", "32 records"),
    ("set", "descriptor set", "6 descriptors of width 3"),
    ("set/descriptors-00000-of-00001.npy", "descriptor set", "6 descriptors of width 3"),
    ("local", "local feature set", "30 local features of model abc"),
    ("index", "index", "flat, 6 photos of width 3"),
    ("asmk", "ASMK index", "variant dolg, 6 photos, 4 words"),
    ("codebook.npz", "codebook", "4 words of width 16"),
    ("scores", "scores", "6 queries x 6 photos"),
    ("model", "model directory", "source test"),
    ("run", "run directory", "latest of step 2"),
    ("export", "SavedModel", "answers to serving_default"),
    ("net.tflite", "LiteRT file", "descriptors of width 3"),
    ("net.onnx", "ONNX file", "descriptors of width 3"),
]


@pytest.mark.parametrize(("name", "kind", "fact"), SOUND)
def test_sound_things_are_told_and_pass(sound, name, kind, fact):
    found = _verify(sound / name)
    assert (found.kind, fact in found.facts) == (kind, True), found


def test_every_kind_is_tried_above():
    assert {kind for _, kind, _ in SOUND} == {*KINDS, "records"}


# --- damaged -------------------------------------------------------------------------


def _rewrite_rows(path, change):
    """Writes the rows of a set again, changed."""
    file = path / "descriptors-00000-of-00001.npy"
    sealed.forget(path / "meta.json")  # as an older release wrote it
    rows = np.load(file)
    np.save(file, change(rows))


def _other_row(rows):
    rows[4] *= 1.005
    return rows


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("set", lambda p: _flip(p / "descriptors-00000-of-00001.npy", -1), "damaged, its checksum"),
        ("set", lambda p: _flip(p / "ids.txt", 0), "ids.txt: damaged, its checksum"),
        ("model", lambda p: _flip(p / "model.weights.h5", -999), "h5: damaged, its checksum"),
        ("set", lambda p: _cut(p / "descriptors-00000-of-00001.npy"), "not a complete .npy"),
        ("set", _other_ids, "6 descriptors for 2 ids"),
        ("set", lambda p: _rewrite_rows(p, _other_row), "to 1.005, the first is row 4), and"),
        ("set", lambda p: _rewrite_rows(p, lambda rows: rows * np.nan), "row 0 is not finite"),
        ("set", lambda p: _rewrite_rows(p, np.float16), "rows are float16, meta.json says 'float3"),
        ("set", lambda p: (p / "meta.json").unlink(), "meta.json: no such file"),
        ("set", lambda p: (p / "ids.txt").unlink(), "ids.txt cannot be read"),
        ("index", lambda p: _flip(p / "index.faiss", -1), "index.faiss: damaged, its checksum"),
        ("index", lambda p: _cut(p / "index.faiss"), "index.faiss: not an IndexFlatIP"),
        ("index", lambda p: _flip(p / "ids.txt", 0), "ids.txt: damaged, its checksum"),
        ("index", lambda p: sealed.change(p / "meta.json", width=4), "not an IndexFlatIP of 6 x 4"),
        ("asmk", lambda p: _flip(p / "codes.npy", -1), "codes.npy: damaged, its checksum"),
        ("asmk", lambda p: _flip(p / "ids.txt", 0), "ids.txt: damaged, its checksum"),
        ("asmk", lambda p: (p / "rows.npy").unlink(), "rows.npy: missing or damaged"),
        ("asmk", lambda p: sealed.change(p / "meta.json", variant="hwo"), "meta.json: damaged"),
        ("codebook.npz", lambda p: _flip(p, 300), "not a codebook, or damaged"),
        ("scores", lambda p: _flip(p / "scores.npy", -1), "scores.npy: damaged, its checksum"),
        ("model", lambda p: _cut(p / "model.weights.h5"), "model.weights.h5"),
        ("model", lambda p: (p / "model.weights.h5").unlink(), "no such file"),
        ("model", lambda p: sealed.change(p / "config.json", "provenance"), "no 'provenance'"),
        ("run", lambda p: _cut(p / "config.json"), "config.json: not JSON"),
        ("run", lambda p: (p / "flags.txt").unlink(), "flags.txt: no such file"),
        ("run", lambda p: (p / "metrics.jsonl").write_text("x\n"), "metrics.jsonl, line 1: not"),
        ("run", lambda p: shutil.rmtree(p / "checkpoints"), "has no checkpoint"),
        ("export", lambda p: _cut(p / "saved_model.pb"), "cannot be loaded: "),
        ("export", lambda p: (p / "saved_model.pb").unlink(), "cannot be loaded: "),
        (
            "export",
            lambda p: sealed.change(p / "assets.extra/dolg.json", mode="serving"),
            "no signature 'i",
        ),
        ("export", lambda p: sealed.change(p / "assets.extra/dolg.json", "scales"), "no 'scales'"),
        ("net.tflite", _cut, "does not run: "),
        ("net.onnx", _cut, "does not run: "),
    ],
)
def test_damage_is_named(copied, name, damage, message):
    path = copied(name)
    damage(path)
    with pytest.raises(InputError) as error:
        _verify(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("part", feature_set.Stored._fields)
def test_damaged_local_features(copied, part):
    path = copied("local")
    _flip(path / f"{part}-00000-of-00001.npy", -1)
    with pytest.raises(InputError, match="features of 'p5' are damaged, their checksum is wrong"):
        _verify(path)


def test_local_features_that_another_tool_wrote_wrongly(copied):
    path = copied("local")
    rows = np.load(path / "descriptors-00000-of-00001.npy") * 2
    np.save(path / "descriptors-00000-of-00001.npy", rows)
    found = feature_set.read(path)
    sums = np.load(path / "sums.npy")
    sums[:] = [found.shards[0].part(a, a + 5).digest() for a in range(0, 30, 5)]
    np.save(path / "sums.npy", sums)
    meta, crcs = checksums.read_json(path / "meta.json", 1, "")
    checksums.write_json(path / "meta.json", meta, crcs | checksums.of_files(path, ["sums.npy"]))
    with pytest.raises(InputError, match="'p0': 5 of 5 rows are not of unit norm"):
        _verify(path)


@pytest.mark.parametrize("damage", [lambda path: _flip(path, 400), _cut])
def test_damaged_records_are_listed(copied, damage, caplog):
    caplog.set_level("INFO")
    path = copied("records") / "validation-00000-of-00001"
    damage(path)
    with pytest.raises(InputError, match="1 faults in 1 of 2 files"):
        _verify(path.parent)
    assert f"{path}, record " in caplog.text


def test_a_flipped_byte_in_any_file_of_a_checkpoint(copied):
    """TensorFlow's checksums cover the numbers; every checkpoint is read, not only the latest."""
    path = copied("run")
    shards = sorted((path / "checkpoints").glob("ckpt-*.data-*"))
    assert len(shards) == 2
    _flip(shards[0], 200)
    with pytest.raises(InputError, match=r"checkpoints\S* is damaged \(.*take another checkpoint"):
        _verify(path)


def test_ids_of_an_index_that_do_not_ascend(copied):
    path = copied("index")
    ids = (path / "ids.txt").read_text().splitlines()
    for wrong, message in (
        ([*ids[1:], ids[0]], "ids do not ascend"),
        ([*ids[:-2], ids[-3], ids[-1]], "ids do not ascend"),
        (ids[:-1], "6 rows for 5 ids"),
    ):
        (path / "ids.txt").write_text("".join(f"{id_}\n" for id_ in wrong))
        sums = json.loads((path / "meta.json").read_text())["sha256"]
        digest = hashlib.sha256((path / "ids.txt").read_bytes()).hexdigest()
        sealed.change(path / "meta.json", sha256=sums | {"ids.txt": digest})
        with pytest.raises(InputError, match=message):
            _verify(path)


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (lambda image: _descriptor(image) * 1.1, r"global_descriptor: .*\(norms from 1.1 to 1.1"),
        (lambda image: _descriptor(image) * np.nan, "global_descriptor are not finite"),
    ],
)
def test_an_export_that_answers_wrongly(tmp_path, describe, message):
    _save_export(tmp_path / "export", describe)
    with pytest.raises(InputError, match=message):
        _verify(tmp_path / "export")


def test_a_model_of_somebody_else(tmp_path):
    """One without dolg.json passes if it answers; one with other inputs is not ours."""
    _save_export(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs/assets.extra")
    assert "no dolg.json: not an export of ours" in _verify(tmp_path / "theirs").facts

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def double(x):
        return {"y": 2 * x}

    tf.saved_model.save(tf.Module(), str(tmp_path / "other"), {"serving_default": double})
    with pytest.raises(InputError, match=r"signatures \['serving_default'\] are not those"):
        _verify(tmp_path / "other")


def test_an_unfinished_set(sound, tmp_path):
    (tmp_path / "set" / descriptors.UNFINISHED).mkdir(parents=True)
    with pytest.raises(InputError, match="is unfinished"):
        _verify(tmp_path / "set")


# --- the command ---------------------------------------------------------------------


def test_what_is_not_known(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        _verify(tmp_path / "none")
    with pytest.raises(InputError, match=r"no file matches .*x-\*"):
        _verify(tmp_path / "x-*")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="is none of: records, SavedModel, in"):
            _verify(path)


def test_options_that_contradict(sound):
    for options in ({}, {"path": "a", "file_pattern": "b"}):
        with pytest.raises(InputError, match="give either --path or --file_pattern"):
            VerifyConfig(**options)
    with pytest.raises(InputError, match=r"--num_classes=3 is for TFRecords; .* kind: index"):
        _verify(sound / "index", num_classes=3)


def test_the_log_calls_records_by_the_path_that_was_given(sound, caplog):
    caplog.set_level("INFO")
    _verify(sound / "records")
    assert f"{sound / 'records'}: 44 records in " in caplog.text


def test_the_flags_of_records_stay(sound, tmp_path):
    counts, pattern = tmp_path / "counts.csv", str(sound / "records/train-*")
    for options in ({"path": pattern}, {"file_pattern": pattern}):
        verify(VerifyConfig(**options, num_classes=4, class_counts_csv=str(counts), processes=1))
        assert counts.read_text() == "label,photos\n0,8\n1,8\n2,8\n3,8\n"
        counts.unlink()
    with pytest.raises(InputError, match="8 faults in 1 of 1 files"):
        verify(VerifyConfig(file_pattern=pattern, num_classes=3))


def test_exit_codes_without_tensorflow(copied):
    """0 sound, 1 damaged; records, sets and indexes are checked without TensorFlow."""
    path = copied("index")
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from dolg_tf.pipelines.verify import VerifyConfig, verify\n"
        "from dolg_tf.stage import command\n"
        "command.main(verify, VerifyConfig)"
    )
    run = [sys.executable, "-c", code, f"--path={path}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{path}: sound; flat, 6 photos" in done.stderr, done.stderr
    _flip(path / "index.faiss", -1)
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "its checksum is wrong" in done.stderr
    assert "Traceback" not in done.stderr
