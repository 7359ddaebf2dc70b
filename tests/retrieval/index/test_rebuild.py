"""Photos are described for an index: to search for them, and to make it anew."""

import csv
import dataclasses

import numpy as np
import pytest
from local_sets import LOCAL_META, draw, same

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import decoding, shards
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.index import answers, directory, stages
from dolg_tf.retrieval.index import photos as index_photos
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import BuildConfig, RebuildConfig, RemoveConfig
from dolg_tf.retrieval.local import writing
from dolg_tf.stage.config import InputError

IDS = tuple(f"{'bca'[i % 3]}/{i}" for i in range(60))


@dataclasses.dataclass
class Model:
    """Describes photos of 2 x 2 pixels, until it has described `stop_at`."""

    name: str
    width: int = 6
    scales: tuple[float, ...] = (0.5, 1.0)
    described: int = 0
    stop_at: int = -1

    def kernel(self):
        rng = np.random.default_rng(list(self.name.encode()))
        return rng.integers(-1, 2, (12, self.width)).astype(np.float32)

    def __call__(self, images):
        if self.described == self.stop_at:
            raise KeyboardInterrupt
        self.described += len(images)
        rows = images.reshape(len(images), 12).astype(np.float64) @ self.kernel()
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    @property
    def local(self):
        """What the model says of local features; "wide" and "delg" say nothing."""
        about = {"kind": "map", "dimensions": 16, "scales": [0.7], "threshold": 0.1}
        return about | {"reduction": None} if self.name in ("old", "new") else None

    def local_of(self, image, scales, most, threshold):
        """Makes the features of a photo from its bytes."""
        assert list(scales) == [0.7] and threshold == 0.1
        rng = np.random.default_rng([*image.tobytes(), *self.name.encode()])
        return draw(rng, min(30, most), size=image.shape[:2])


TURNED = set()  # whether photos were to be turned


@pytest.fixture
def models(monkeypatch):
    """SavedModels by name, for photos that are files of 12 bytes; TensorFlow is not loaded."""

    def prepare(photo, how, hold):
        TURNED.add(photo.turn)
        if photo.fault:
            return f"{photo.where}: {photo.fault}"
        if not photo.path.is_file() or photo.path.stat().st_size != 12:
            return f"{photo.where}: no photo"
        return decoding.Prepared(np.frombuffer(photo.read(), np.uint8).reshape(2, 2, 3), (2, 2))

    def open_describer(name, scales):
        scales = scales or found[name].scales
        if not scales:
            raise InputError(f"{name} does not say its scales")
        model = found[name]
        both = model, model.local_of
        return Describer(name, scales, None, lambda: model, model.local, lambda: both)

    models = [Model("old"), Model("new"), Model("wide", 9)]
    models += [Model("finer", scales=(0.25, 1 / 3)), Model("delg", scales=())]
    found = {model.name: model for model in models}
    monkeypatch.setattr(decoding, "prepare", prepare)
    monkeypatch.setattr(index_photos, "open_describer", open_describer)
    return found


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(5)
    for id_ in IDS:
        file = tmp_path / "photos" / f"{id_}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rng.integers(0, 256, 12, dtype=np.uint8).tobytes())
    return tmp_path / "photos"


def _describe(path, photos, model, ids=IDS, **about):
    """Writes a descriptor set without what is tested here."""
    pixels = [np.frombuffer((photos / f"{id_}.png").read_bytes(), np.uint8) for id_ in ids]
    rows = model(np.array(pixels)) if len(pixels) else np.zeros((0, model.width), np.float32)
    model.described -= len(pixels)
    meta = {"image_root": str(photos), "model_hash": model.name, "scales": [0.5, 1.0]}
    meta |= {"crop": False, "max_side": 0, "whitening": None, "bad": []}
    descriptors.write(path, DescriptorSet(tuple(ids), rows, meta | about))
    return str(path)


def _build(path, photos, model, ids=IDS, **about):
    made = _describe(path.with_name(f"{path.name}.set"), photos, model, ids, **about)
    return stages.build(BuildConfig(descriptors=made, output=str(path))).path


def _build_local(path, photos, model, ids=IDS, **about):
    """Builds an index with local features."""
    made = _describe(path.with_name(f"{path.name}.set"), photos, model, ids)
    images = {id_: (photos / f"{id_}.png").read_bytes() for id_ in ids}
    pixels = {id_: np.frombuffer(data, np.uint8).reshape(2, 2, 3) for id_, data in images.items()}
    features = [(id_, model.local_of(image, [0.7], 20, 0.1)) for id_, image in pixels.items()]
    meta = {"model_hash": model.name, "image_root": str(photos), "scales": [0.7]}
    meta |= {"max_features": 20, "threshold": 0.1, "dtype": "bits"}
    writing.write(f"{made}.local", features, LOCAL_META | meta | about)
    options = {"descriptors": made, "local": f"{made}.local", "output": str(path)}
    return stages.build(BuildConfig(**options)).path


def _bytes(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def built(tmp_path, models, photos):
    return _build(tmp_path / "index", photos, models["old"])


@pytest.fixture
def rebuilt(tmp_path, models, photos):
    """What a rebuild with the new model must give."""
    return _bytes(_build(tmp_path / "fresh", photos, models["new"]))


# --- query ---------------------------------------------------------------------------


def test_photos_are_searched_for(tmp_path, built, models, photos):
    """One, a folder, and a list give what their descriptors give."""
    settings = {"index": str(built), "k": 2, "overwrite": True}
    (photos / "list.csv").write_text(f"id\n{IDS[9]}\n{IDS[4]}\n")
    for images, ids in (
        (photos / f"{IDS[9]}.png", IDS[9:10]),
        (photos / "a", sorted(id_ for id_ in IDS if id_.startswith("a/"))),
        (photos / "list.csv", [IDS[9], IDS[4]]),
    ):
        root = images.parent if images.is_file() else images
        made = _describe(tmp_path / "queries", photos, models["old"], ids)
        answers.query(QueryConfig(descriptors=made, output=str(tmp_path / "x.csv"), **settings))
        expected = (tmp_path / "x.csv").read_text()
        if root != photos:
            expected = expected.replace(f"\n{root.name}/", "\n")  # names are relative to the root
        options = {"images": str(images), "saved_model": "old", "output": str(tmp_path / "y.csv")}
        answers.query(QueryConfig(**options, **settings))
        assert (tmp_path / "y.csv").read_text() == expected


@pytest.mark.parametrize("upright", [True, False])
def test_queries_and_photos_described_again_are_turned_as_those_of_the_index(
    tmp_path, models, photos, upright
):
    index = _build(tmp_path / "turned", photos, models["old"], upright=upright)
    settings = {"index": str(index), "output": str(tmp_path / "x.csv"), "overwrite": True}
    (photos / "list.csv").write_text(f"id\n{IDS[9]}\n")
    for images in (photos / f"{IDS[9]}.png", photos / "a", photos / "list.csv"):
        TURNED.clear()
        answers.query(QueryConfig(images=str(images), saved_model="old", **settings))
        assert {upright} == TURNED
    TURNED.clear()
    stages.rebuild(RebuildConfig(index=str(index), saved_model="new"))
    assert {upright} == TURNED and Index.open(index).meta["upright"] is upright


def test_a_file_of_exactly_that_name_is_searched_for(tmp_path, built, photos):
    (photos / "photo").write_bytes((photos / f"{IDS[3]}.png").read_bytes())
    (photos / "photo.jpg").write_bytes((photos / f"{IDS[4]}.png").read_bytes())

    def answer(name):
        settings = {"index": str(built), "saved_model": "old", "overwrite": True}
        output = tmp_path / "x.csv"
        answers.query(QueryConfig(images=str(photos / name), output=str(output), **settings))
        with output.open(newline="") as file:
            queries, *found = zip(*list(csv.reader(file))[1:], strict=True)
        return queries[0], found

    assert answer("photo") == ("photo", answer(f"{IDS[3]}.png")[1])
    assert answer("photo.jpg") == ("photo.jpg", answer(f"{IDS[4]}.png")[1])


def test_a_query_with_a_name_that_no_list_can_hold_is_named(tmp_path, built, photos):
    path = photos / " lead.png"
    path.write_bytes((photos / f"{IDS[3]}.png").read_bytes())
    settings = {"index": str(built), "saved_model": "old", "output": str(tmp_path / "x.csv")}
    with pytest.raises(
        InputError, match=r"photos/ lead.png: .* blank at an end; rename it"
    ) as told:
        answers.query(QueryConfig(images=str(path), **settings))
    assert "csv" not in str(told.value)


def test_no_photo_is_described_for_an_index_of_another_model(tmp_path, built, models, photos):
    options = {"images": str(photos), "saved_model": "new", "output": str(tmp_path / "found.csv")}
    with pytest.raises(InputError, match=r"new has model_hash 'new', .*index has 'old'"):
        answers.query(QueryConfig(index=str(built), **options))
    assert models["new"].described == 0


def test_one_photo_of_any_suffix_is_searched_for(tmp_path, built, photos):
    (tmp_path / "photo.webp").write_bytes((photos / f"{IDS[9]}.png").read_bytes())
    options = {"images": str(tmp_path / "photo.webp"), "output": str(tmp_path / "found.csv")}
    answers.query(QueryConfig(index=str(built), saved_model="old", **options))
    with (tmp_path / "found.csv").open(newline="") as file:
        found = {row["id"]: row["score"] for row in csv.DictReader(file)}
    (tmp_path / "photo.webp").rename(tmp_path / "photo.png")
    options = {"images": str(tmp_path / "photo.png"), "output": str(tmp_path / "again.csv")}
    answers.query(QueryConfig(index=str(built), saved_model="old", **options))
    with (tmp_path / "again.csv").open(newline="") as file:
        assert found == {row["id"]: row["score"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"whitening": "abc"}, "`dolg whiten apply` too, and give --descriptors, not"),
        ({"scales": None}, "imported descriptors, .* give --descriptors, not --images"),
    ],
)
def test_descriptors_that_no_model_gives_alone_are_searched_for_with_such(
    tmp_path, models, photos, about, told
):
    path = _build(tmp_path / "index", photos, models["old"], **about)
    options = {"images": str(photos), "saved_model": "old", "output": str(tmp_path / "found.csv")}
    with pytest.raises(InputError, match=told):
        answers.query(QueryConfig(index=str(path), **options))
    assert models["old"].described == 0


def test_photos_are_described_and_verified_in_one_go(tmp_path, models, photos):
    """As their sets are, which gives the same answers."""
    index = _build_local(tmp_path / "index", photos, models["old"])
    _build_local(tmp_path / "q", photos, models["old"], sorted(i for i in IDS if i[0] == "a"))
    settings = {"index": str(index), "rerank": "geometric", "max_residual": "20%", "k": 5}
    sets = {"descriptors": f"{tmp_path}/q.set", "query_local": f"{tmp_path}/q.set.local"}
    answers.query(QueryConfig(output=str(tmp_path / "x.csv"), **sets, **settings))
    options = {"images": str(photos / "a"), "saved_model": "old"}
    answers.query(QueryConfig(output=str(tmp_path / "y.csv"), **options, **settings))
    expected = (tmp_path / "x.csv").read_text().replace("\na/", "\n")
    assert (tmp_path / "y.csv").read_text() == expected
    with (tmp_path / "y.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert all(line["inliers"] == "20" for line in lines if line["rank"] == "1")  # the photo itself
    assert models["old"].described == len(lines) // 5


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"kind": "dolg"}, r"old has kind 'map'.* has 'dolg': give the queries by --descriptors"),
        ({"reduction": "abc"}, r"old has reduction None.* has 'abc': give the queries by"),
        ({"model_hash": "delg"}, r"old has model_hash 'old'.* has 'delg': give the queries by"),
    ],
)
def test_a_model_that_cannot_make_such_local_features(tmp_path, models, photos, about, told):
    made = _describe(tmp_path / "index.set", photos, models["old"])
    features = [(id_, draw(np.random.default_rng(0), 3)) for id_ in IDS]
    writing.write(tmp_path / "local", features, LOCAL_META | {"model_hash": "old"} | about)
    local = {"local": str(tmp_path / "local"), "other_local_model": True}
    index = stages.build(BuildConfig(descriptors=made, output=str(tmp_path / "index"), **local))
    options = {"images": str(photos / "a"), "saved_model": "old", "rerank": "geometric"}
    with pytest.raises(InputError, match=told):
        answers.query(QueryConfig(index=str(index.path), output=str(tmp_path / "x"), **options))
    assert models["old"].described == 0


# --- rebuild -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "wide"])
def test_rebuild_with_another_model(tmp_path, built, models, photos, name):
    stages.rebuild(RebuildConfig(index=str(built), saved_model=name))
    assert models[name].described == 60 and not (tmp_path / "index.rebuild").exists()
    assert _bytes(built) == _bytes(_build(tmp_path / "fresh", photos, models[name]))


def test_rebuild_makes_local_features_anew(tmp_path, models, photos, monkeypatch):
    """Interrupted, too: none is made twice."""
    monkeypatch.setattr(shards, "SHARD_PHOTOS", 8)
    path = _build_local(tmp_path / "index", photos, models["old"])
    settings = RebuildConfig(index=str(path), saved_model="new")
    models["new"].stop_at = 24
    with pytest.raises(KeyboardInterrupt):
        stages.rebuild(settings)
    models["new"].stop_at = -1
    rebuilt = stages.rebuild(settings)
    assert models["new"].described == 60 and not list(tmp_path.glob("index.rebuild*"))
    fresh = Index.open(_build_local(tmp_path / "fresh", photos, models["new"]))
    assert rebuilt.meta["local"] == fresh.meta["local"]
    pairs = zip(rebuilt.local.rows_of(IDS), fresh.local.rows_of(IDS), strict=True)
    assert all(same(rebuilt.local[row], fresh.local[other]) for row, other in pairs)
    with pytest.raises(InputError, match="does not say how its local features are found"):
        stages.rebuild(RebuildConfig(index=str(path), saved_model="wide"))


def test_an_interrupted_rebuild_goes_on(tmp_path, built, rebuilt, models, monkeypatch):
    """Interrupted among the photos, then before the index is written: none is described twice."""
    monkeypatch.setattr(shards, "SHARD_PHOTOS", 8)
    before, settings = _bytes(built), RebuildConfig(index=str(built), saved_model="new")
    models["new"].stop_at = 24
    with pytest.raises(KeyboardInterrupt):
        stages.rebuild(settings)
    assert _bytes(built) == before
    models["new"].stop_at = 60

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(directory, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.rebuild(settings)
    assert _bytes(built) == before and models["new"].described == 60
    stages.rebuild(settings)
    assert _bytes(built) == rebuilt and not (tmp_path / "index.rebuild").exists()


def test_photos_that_are_gone_leave_the_index_when_told(tmp_path, built, models, photos):
    before, settings = _bytes(built), {"index": str(built), "saved_model": "new"}
    (photos / f"{IDS[2]}.png").unlink()
    (photos / f"{IDS[1]}.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"1 of 60 photos are missing, the first is .*/a/2"):
        stages.rebuild(RebuildConfig(**settings))
    with pytest.raises(InputError, match=r"2 unreadable photos, but --max_bad=1"):
        stages.rebuild(RebuildConfig(max_bad=1, **settings))
    assert _bytes(built) == before
    stages.rebuild(RebuildConfig(max_bad=2, **settings))
    left = _build(tmp_path / "fresh", photos, models["new"], [IDS[0], *IDS[3:]])
    assert _bytes(built) == _bytes(left)


def test_photos_that_were_moved(tmp_path, built, models, photos):
    photos = photos.rename(tmp_path / "moved")
    settings = {"index": str(built), "saved_model": "new"}
    with pytest.raises(InputError, match=r"image_root=.*photos: no such folder"):
        stages.rebuild(RebuildConfig(**settings))
    stages.rebuild(RebuildConfig(image_root=str(photos), **settings))
    assert _bytes(built) == _bytes(_build(tmp_path / "fresh", photos, models["new"]))


def test_photos_that_were_cut_are_not_described_whole(tmp_path, models, photos):
    path = _build(tmp_path / "index", photos, models["old"], crop=True)
    with pytest.raises(InputError, match="cropped to boxes; extract and build it instead"):
        stages.rebuild(RebuildConfig(index=str(path), saved_model="new"))


def test_a_whitening_is_not_dropped(tmp_path, models, photos):
    path = _build(tmp_path / "index", photos, models["old"], whitening="abc")
    before = _bytes(path)
    with pytest.raises(InputError, match="a rebuild would undo; extract, whiten and build it"):
        stages.rebuild(RebuildConfig(index=str(path), saved_model="new"))
    assert _bytes(path) == before and models["new"].described == 0


@pytest.mark.parametrize(
    ("name", "scales", "told"),
    [
        ("finer", [0.25, 1 / 3], "at the scales of the model, 0.25, 0.3333"),
        ("delg", [0.5, 1.0], "at the scales of the index, 0.5, 1"),
    ],
)
def test_scales_are_those_of_the_new_model(built, caplog, name, scales, told):
    caplog.set_level("INFO")
    stages.rebuild(RebuildConfig(index=str(built), saved_model=name))
    assert Index.open(built).meta["scales"] == scales and told in caplog.text


def test_photos_of_records_are_not_found_again(tmp_path, models, photos):
    path = _build(tmp_path / "index", photos, models["old"])
    for photo in photos.rglob("*.png"):
        photo.unlink()
    told = r"photos has none of the 60 photos .* TFRecords cannot be found again, so extract"
    with pytest.raises(InputError, match=told):
        stages.rebuild(RebuildConfig(index=str(path), saved_model="new"))


def test_another_rebuild_that_was_begun_is_to_be_deleted(tmp_path, built, models, monkeypatch):
    """By another model, or of the photos that the index had before."""
    monkeypatch.setattr(shards, "SHARD_PHOTOS", 8)
    models["new"].stop_at, work = 24, tmp_path / "index.rebuild"
    with pytest.raises(KeyboardInterrupt):
        stages.rebuild(RebuildConfig(index=str(built), saved_model="new"))
    told = rf"^{work} was begun with model_hash='new', not 'wide'; delete {work}$"
    with pytest.raises(InputError, match=told):
        stages.rebuild(RebuildConfig(index=str(built), saved_model="wide"))
    (tmp_path / "gone.txt").write_text(IDS[0])
    stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "gone.txt")))
    with pytest.raises(InputError, match=rf"^{work} was begun of other photos; delete {work}$"):
        stages.rebuild(RebuildConfig(index=str(built), saved_model="new"))


def test_imported_descriptors_are_rebuilt_with_the_scales_of_the_model(
    tmp_path, models, photos, rebuilt
):
    unsaid = dict.fromkeys(("scales", "crop", "max_side"))
    path = _build(tmp_path / "index", photos, models["old"], **unsaid)
    stages.rebuild(RebuildConfig(index=str(path), saved_model="new"))
    assert _bytes(path) == rebuilt


def test_the_threshold_stays_with_the_model(tmp_path, built, caplog):
    directory.set_calibration(built, {"threshold": 0.5}, Index.open(built).meta)
    (tmp_path / "gone.txt").write_text(IDS[0])
    stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "gone.txt")))
    stages.rebuild(RebuildConfig(index=str(built), saved_model="old"))
    assert Index.open(built).threshold == 0.5 and "calibrate" not in caplog.text
    stages.rebuild(RebuildConfig(index=str(built), saved_model="new"))
    assert Index.open(built).threshold is None
    assert "its threshold was fitted for the old descriptors; calibrate again" in caplog.text


@pytest.mark.parametrize("fewest", [0, 12])
def test_what_was_fitted_with_inliers_stays_with_the_local_features(
    tmp_path, models, photos, caplog, fewest
):
    path = _build_local(tmp_path / "index", photos, models["old"])
    weight = {"rerank": "geometric", "order": "sum", "weight": 0.1, "cap": 100, "verify": 9}
    weight |= {"settings": {}, "min_inliers": fewest}
    calibration = {"threshold": 0.5, "geometric": weight}
    directory.set_calibration(path, calibration, Index.open(path).meta)
    stages.rebuild(RebuildConfig(index=str(path), saved_model="old"))
    assert Index.open(path).meta["calibration"] == calibration and "calibrate" not in caplog.text
    # At another scale, others agree.
    made, features = _describe(tmp_path / "set", photos, models["old"]), Index.open(path).local
    kept = [(id_, features[row]) for row, id_ in enumerate(features.ids)]
    writing.write(tmp_path / "local", kept, features.meta | {"scales": [1.4]})
    build = {"descriptors": made, "local": str(tmp_path / "local"), "output": str(path)}
    stages.build(BuildConfig(**build, overwrite=True))
    assert "was calibrated, the new index is not" in caplog.text
    directory.set_calibration(path, calibration, Index.open(path).meta)
    stages.rebuild(RebuildConfig(index=str(path), saved_model="old"))
    left = None if fewest else {"threshold": 0.5}
    assert Index.open(path).meta["calibration"] == left
    assert "fitted for the old local features; calibrate again" in caplog.text
