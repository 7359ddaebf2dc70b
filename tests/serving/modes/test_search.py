"""Mode `search`: photos in, the nearest photos of an index out, as `dolg index query` has them."""

import csv
import json

import numpy as np
import older_tensorflow
import pytest
from PIL import Image

from dolg_tf.pipelines import export as pipeline
from dolg_tf.pipelines.export_checks import check_saved_model
from dolg_tf.retrieval.extract import stage as extraction
from dolg_tf.retrieval.extract.decoding import shrink
from dolg_tf.retrieval.index import answers, directory, stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.runtime.session import CppSession
from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.serving.modes import search
from dolg_tf.stage.config import InputError

SCALES = (0.7071, 1.0)
THRESHOLD = 0.5


def _draw(path, seed, size=(40, 52)):
    photo = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(photo).save(path)


@pytest.fixture(scope="module")
def world(export, tmp_path_factory):
    """A folder with a SavedModel of mode serving, photos, and their calibrated index."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "photos").mkdir()
    for number in range(12):
        # One is larger than the longest side.
        size = (90, 130) if number == 3 else (40, 52)
        _draw(folder / "photos" / f"tür_{number:02d}.png", number, size)
    model = export(mode="serving", scales=SCALES)
    described = folder / "described"
    extraction.extract(
        extraction.ExtractConfig(
            saved_model=str(model),
            images=str(folder / "photos"),
            scales=SCALES,
            max_side=64,
            output=str(described),
        )
    )
    index = folder / "index"
    stages.build(stages.BuildConfig(descriptors=str(described), output=str(index)))
    calibration = {"threshold": THRESHOLD}
    directory.set_calibration(index, calibration, Index.open(index).meta)
    lines = ["path,landmark", *(f"tür_{n:02d}.png,place {n % 3}" for n in range(11))]
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder, model


@pytest.fixture(scope="module")
def config(world, model_dir):
    """Function of options and the name of the output to the options of an export."""
    folder, _ = world

    def options(name, **others):
        given = {"index": str(folder / "index"), "k": 5, **others}
        return ExportConfig(
            mode="search", model_dir=str(model_dir), output=str(folder / name), **given
        )

    return options


@pytest.fixture(scope="module")
def exported(world, config):
    return pipeline.export(config("1", labels_csv=str(world[0] / "labels.csv")))


@pytest.fixture(scope="module")
def served(exported):
    """Function of photos to the outputs for them."""
    with CppSession(exported) as session:
        yield lambda photos: _run(session, photos)


def test_it_holds_nothing_newer_than_the_release_named_for_it(exported):
    assert older_tensorflow.unknown(exported, MODES["search"].tensorflow) == set()


def _run(session, photos):
    return session.run("serving_default", {"image_bytes": np.array(photos, object)})


def test_answers_are_those_of_index_query(world, served):
    folder, model = world
    photos = sorted((folder / "photos").iterdir())
    found = served([*(photo.read_bytes() for photo in photos), b"no photo"])
    answers.query(
        answers.QueryConfig(
            index=str(folder / "index"),
            saved_model=str(model),
            images=str(folder / "photos"),
            k=5,
            output=str(folder / "found.csv"),
        )
    )
    with (folder / "found.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for place, photo in enumerate(photos):
        if photo.stem == "tür_03":
            continue  # shrunk by another library, to one level
        own = [row for row in rows if row["query"] == photo.stem]
        ids = [id_.decode() for id_ in found["ids"][place]]
        assert ids == [row["id"] for row in own]
        # Extraction describes photos in other batches, which may round a descriptor otherwise.
        expected = [float(row["score"]) for row in own]
        np.testing.assert_allclose(found["scores"][place], expected, rtol=0, atol=3e-7)
        told = ["match" if match else "no match" for match in found["match"][place]]
        assert told == [row["match"] for row in own]
    large = photos.index(folder / "photos" / "tür_03.png")
    assert found["ids"][large, 0].decode() == "tür_03"
    np.testing.assert_allclose(found["scores"][large, 0], 1, atol=1e-3)


def test_landmarks_and_what_cannot_be_read(world, served):
    found = served([(world[0] / "photos" / "tür_11.png").read_bytes(), b""])
    ids = [id_.decode() for id_ in found["ids"][0]]
    assert ids[0] == "tür_11"  # which alone is not in the CSV
    places = ["", *(f"place {int(id_[-2:]) % 3}" for id_ in ids[1:])]
    assert [landmark.decode() for landmark in found["landmarks"][0]] == places
    assert found["status"].tolist() == [0, 1]
    assert not any(found["ids"][1]) and not any(found["landmarks"][1])
    assert not found["scores"][1].any() and not found["match"][1].any()
    assert served([])["ids"].shape == (0, 5)


def test_it_says_what_it_holds(world, exported):
    about = json.loads((exported / "assets.extra" / "dolg.json").read_text())
    meta = Index.open(world[0] / "index").meta
    assert about["mode"] == "search" and about["scales"] == meta["scales"]
    assert about["index"] == {
        **{"path": "index", "rows": 12, "width": 16, "k": 5, "precision": "float32"},
        "sha256": meta["sha256"]["index.faiss"],
    }
    assert "mode search" in check_saved_model(exported)
    card = (exported / "README.md").read_text()
    assert "the 5 nearest of the 12 photos of an index out" in card and "one descriptor" not in card
    assert (exported / "assets.extra" / "tf_serving_warmup_requests").is_file()


@pytest.mark.slow
def test_half_precision_says_its_recall(world, config, caplog):
    caplog.set_level("INFO")
    model = pipeline.export(config("half", index_precision="float16", k=100))
    about = json.loads((model / "assets.extra" / "dolg.json").read_text())
    assert about["index"]["recall"] == 1 and about["index"]["k"] == 12
    assert "the index has 12 photos" in caplog.text and "100.00% of the 12 best" in caplog.text
    rows = np.asarray(Index.open(world[0] / "index").descriptors[:1]).astype("f2").astype("f4")
    photo = (world[0] / "photos" / "tür_00.png").read_bytes()
    with CppSession(model) as session:
        best = _run(session, [photo])["scores"][0, 0]
    np.testing.assert_allclose(best, np.linalg.norm(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scales": (1.0,)}, "those of .* are 0.7071,1.0; leave the option out"),
        ({"upright": False}, "turned upright; omit it"),
        ({"labels_csv": "index/meta.json"}, "no column|header"),
        ({"index": "photos"}, "no index"),
        ({"whitening": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_network_is_read(
    world, config, options, told, monkeypatch
):
    def refuse(*_):
        raise AssertionError("the network was read")

    monkeypatch.setattr("dolg_tf.serving.saved_model.load_source", refuse)
    for key in ("labels_csv", "index"):
        if key in options:
            options = {**options, key: str(world[0] / options[key])}
    with pytest.raises(InputError, match=told):
        pipeline.export(config("refused", **options))


def test_another_model_is_refused(world, config):
    with pytest.raises(InputError, match="export the model that described its photos"):
        pipeline.export(config("other", precision="bfloat16"))
    assert not (world[0] / "other").exists()


def test_other_modes_take_no_index():
    for options, told in (
        ({"mode": "search"}, "--mode=search needs --index"),
        ({"index": "i"}, "--index with --mode=serving"),
        ({"mode": "search", "index": "i", "k": 0}, "--k=0"),
    ):
        with pytest.raises(InputError, match=told):
            ExportConfig(model_dir="m", output="o", **options)


@pytest.mark.parametrize("size", [(90, 130), (64, 64), (131, 7), (40, 52)])
def test_photos_are_shrunk_as_for_the_index(size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected, found = shrink(photo, 64), search.shrink(photo, 64).numpy()
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
