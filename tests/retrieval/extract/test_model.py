"""SavedModels that describe photos: ours, and DELG's extractor, ours or another's."""

import json

import numpy as np
import pytest
import stand_in_saved_model as stand_in
import tensorflow as tf
from PIL import ExifTags, Image

from dolg_tf.data.scales import LOCAL_SCALES
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import load_model, open_describer
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.runtime.session import CppSession
from dolg_tf.stage.config import InputError

SCALES = (0.5, 1.0, 2.0)


class _Delg(tf.Module):
    """One row a scale, of any length, as DELG's own extractors give them."""

    def __init__(self, name_of_output="global_descriptors", more=()):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 8), (0, 1)))
        spec = [
            tf.TensorSpec([None, None, 3], tf.uint8, "input_image"),
            tf.TensorSpec([None], tf.float32, "input_scales"),
            tf.TensorSpec([None], tf.int32, "input_global_scales_ind"),
            *more,
        ]

        def extract(input_image, input_scales, input_global_scales_ind, *_):
            tf.debugging.assert_equal(tf.rank(input_image), 3)
            scales = tf.gather(input_scales, input_global_scales_ind)
            colour = tf.reduce_mean(tf.cast(input_image, tf.float32), (0, 1))
            # Rows of different lengths and directions.
            rows = tf.einsum("s,c->sc", scales, colour) + tf.cos(scales)[:, None] * 99
            return {name_of_output: rows @ self.kernel}

        self.serving_default = tf.function(extract, input_signature=spec)


def _save(path, model, info=None):
    tf.saved_model.save(model, str(path), {"serving_default": model.serving_default})
    if info is not None:
        (path / "assets.extra").mkdir()
        info = {"format_version": 1, "scales": SCALES, "weights_sha256": "abc"} | info
        (path / "assets.extra/dolg.json").write_text(json.dumps(info))
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("model") / "foreign", _Delg())


def _expected(images, scales):
    kernel = tf.random.stateless_normal((3, 8), (0, 1)).numpy().astype(np.float64)
    found = []
    for image in images:
        colour = image.astype(np.float64).mean((0, 1))
        rows = [(scale * colour + np.cos(scale) * 99) @ kernel for scale in scales]
        total = sum(row / np.linalg.norm(row) for row in rows)
        found.append(total / np.linalg.norm(total))
    return np.array(found)


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("scales", [SCALES, (0.7,)])
def test_rows_of_the_scales_are_averaged(foreign, scales):
    describe = open_describer(foreign, scales).load()
    np.testing.assert_allclose(describe(IMAGES), _expected(IMAGES, scales), atol=1e-5)


def test_our_own_mode_delg_says_scales_and_hash(tmp_path):
    path = _save(tmp_path / "model", _Delg(), {"whitening": {"sha256": "w"}})
    found = open_describer(path, ())
    assert (found.model_hash, found.scales) == ("abc", SCALES)
    assert found.whitening == {"sha256": "w"}
    np.testing.assert_allclose(found.load()(IMAGES), _expected(IMAGES, SCALES), atol=1e-5)
    assert open_describer(path, (1.0,)).scales == (1.0,)


def test_a_foreign_extractor_is_told_by_its_files(foreign, tmp_path):
    with pytest.raises(InputError, match=r"has no assets.extra/dolg.json.*such as --scales"):
        open_describer(foreign, ())
    first = open_describer(foreign, SCALES)
    assert first.whitening is None
    model = _Delg()
    model.kernel.assign_add(tf.ones_like(model.kernel))
    other = _save(tmp_path / "other", model)
    assert open_describer(other, SCALES).model_hash != first.model_hash


def test_what_is_no_extractor(tmp_path):
    local = _save(tmp_path / "local", _Delg("local_descriptors"))
    more = _save(tmp_path / "more", _Delg(more=[tf.TensorSpec([], tf.float32, "input_abs_thres")]))
    for path in (local, more):
        with pytest.raises(InputError, match=r"is not an extractor of DELG's descriptors"):
            open_describer(path, SCALES).load()
    with pytest.raises(InputError, match="no SavedModel there"):
        open_describer(tmp_path, SCALES)


# --- loaded ---------------------------------------------------------------------------

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    signatures = (*stand_in.LOCAL, "local")
    return load_model(stand_in.save(tmp_path_factory.mktemp("ours") / "model", signatures))


def _signature(model, images, scales):
    call = tf.saved_model.load(str(model.path)).signatures["images"]
    return call(images=tf.constant(images), scales=tf.constant(scales, tf.float32))[
        "descriptors"
    ].numpy()


def test_it_gives_what_the_signatures_give(ours):
    features = ours.local_features(PHOTO)
    assert features.shape == (3, 4, 3) and features.dtype == np.float32 and ours.has_maps
    attention = ours.maps(PHOTO)["attention"]
    np.testing.assert_allclose(attention, np.linalg.norm(features, axis=-1), rtol=1e-5)
    photos = np.stack([PHOTO, PHOTO[::-1]])
    expected = _signature(ours, photos, stand_in.SCALES)
    np.testing.assert_array_equal(ours.describe(photos), expected)
    np.testing.assert_array_equal(ours.describe(photos, (1.0,)), _signature(ours, photos, (1.0,)))


def test_photos_of_all_kinds_and_sizes_in_their_order(ours, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    images = [
        PHOTO,
        PHOTO[5:15, 10:30],
        PHOTO[:, ::2],
        *[np.full_like(PHOTO, x) for x in range(20)],
    ]
    photos = [str(tmp_path / "a.png"), Photo("a", tmp_path / "a.png", (10, 5, 30, 15)), *images[2:]]
    found = ours.describe(iter(photos))
    assert found.shape == (23, 3) and found.dtype == np.float32
    for row, image in zip(found, images, strict=True):
        np.testing.assert_allclose(row, ours.describe(image[None])[0], atol=1e-6)
    from_file = ours.maps(tmp_path / "a.png")["attention"]
    np.testing.assert_array_equal(from_file, ours.maps(PHOTO)["attention"])


def test_photos_are_described_as_extraction_does(ours, tmp_path):
    folder, exif = tmp_path / "photos", Image.Exif()
    folder.mkdir()
    levels = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(PHOTO).save(folder / "a.png")
    Image.fromarray(levels).resize((1300, 900)).save(folder / "large.jpg")
    Image.fromarray(levels).resize((90, 70)).save(folder / "turned.jpg", exif=exif)
    photos = [folder / name for name in ("a.png", "large.jpg", "turned.jpg")]

    def stored(name, **options):
        return extract(
            ExtractConfig(
                images=str(folder),
                saved_model=str(ours.path),
                output=str(tmp_path / name),
                **options,
            )
        )

    default = stored("default")
    np.testing.assert_allclose(ours.describe(photos), default.descriptors, atol=1e-6)
    small = stored("small", max_side=50, upright=False, scales=(1.0,))
    found = ours.describe(photos, like=small.meta)
    np.testing.assert_allclose(found, small.descriptors, atol=1e-6)
    assert np.abs(small.descriptors[1:] - default.descriptors[1:]).max(axis=1).min() > 1e-4
    # Sets of before have no key "upright", and are of photos as they are stored.
    older = {key: value for key, value in small.meta.items() if key != "upright"}
    np.testing.assert_array_equal(ours.describe(photos, like=older), found)


def test_delgs_extractor_describes_photos_of_other_sizes(foreign):
    model = load_model(foreign, SCALES)
    photos = [IMAGES[0], IMAGES[1][:4], IMAGES[2]]
    np.testing.assert_allclose(model.describe(photos), _expected(photos, SCALES), atol=1e-5)
    with pytest.raises(InputError, match=r"no signature 'maps', only .*--mode=serving"):
        model.maps(IMAGES[0])


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        (PHOTO, r"uint8 \(40, 50, 3\); give uint8 RGB \(N, H, W, 3\), or a list"),
        (PHOTO[None] / 255, r"float64 .*; give uint8 RGB"),
        ([PHOTO[None]], r"uint8 \(1, 40, 50, 3\); give uint8 RGB \(H, W, 3\)"),
        ("a.jpg", "a.jpg is a single photo; give a list"),
        ([], "no photos"),
        ([PHOTO, "missing.jpg"], "missing.jpg: No such file"),
    ],
)
def test_what_cannot_be_described(ours, photos, message):
    with pytest.raises(InputError, match=message):
        ours.describe(photos)


def _naive_local(image, scales, limit, threshold):
    """The stand-in's cells, one by one: a list of (strength, position, scale, descriptor)."""
    found = []
    for scale in map(np.float32, scales):
        size = [max(1, round(float(scale * side))) for side in image.shape[:2]]
        resized = tf.image.resize(image.astype(np.float32), size)
        cells = tf.nn.avg_pool2d(resized[None], 16, 16, "SAME")[0].numpy() / 127.5 - 1
        for i, j in np.ndindex(cells.shape[:2]):
            strength = np.linalg.norm(cells[i, j])
            place = np.float32((16 * i, 16 * j)) / scale
            found.append((strength, place, 1 / scale, cells[i, j] / strength))
    found = [cell for cell in found if cell[0] >= threshold]
    found.sort(key=lambda cell: -cell[0])
    return found[:limit]


def _check_local(found, expected, size):
    assert len(found) == len(expected) and found.size == size
    names = ("strengths", "positions", "scales", "descriptors")
    for name, values in zip(names, zip(*expected, strict=True), strict=True):
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_allclose(getattr(found, name), np.array(values), atol=2e-4)


def test_local_features_of_pixels(ours):
    assert ours.has_local
    image = np.random.default_rng(2).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    every = ours.local_of(image, (0.5, 1.0))
    _check_local(every, _naive_local(image, (0.5, 1.0), 1000, 0), (50, 90))
    bar = float(np.median(every.strengths))
    _check_local(ours.local_of(image, (0.5, 1.0), 5, bar), _rows(every, 5), (50, 90))
    assert len(ours.local_of(image, (0.5, 1.0), threshold=bar)) < len(every)
    _check_local(ours.local_of(image), _naive_local(image, LOCAL_SCALES, 1000, 0), (50, 90))
    assert ours.local_of(image, max_features=0).descriptors.shape == (0, 3)


def _rows(found, limit):
    rows = zip(found.strengths, found.positions, found.scales, found.descriptors, strict=True)
    return list(rows)[:limit]


def test_positions_are_in_the_pixels_of_the_photo_before_it_was_shrunk(ours, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    levels = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(levels).resize((130, 90)).save(tmp_path / "a.png", exif=exif)
    like = {"max_side": 65, "upright": True}
    found = ours.local(tmp_path / "a.png", scales=(1.0,), like=like)
    assert found.size == (130, 90)
    shrunk = read_photo(tmp_path / "a.png", Preparation.of(like))
    assert shrunk.shape[:2] == (65, 45)
    expected = ours.local_of(shrunk, (1.0,))
    np.testing.assert_allclose(found.positions, 2 * expected.positions, rtol=1e-6)
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)
    # DELF's rule: scales are not divided.
    np.testing.assert_array_equal(found.scales, 1)
    boxed = Photo("a", tmp_path / "a.png", (10, 5, 40, 65), turn=True)
    assert ours.local(boxed).size == (60, 30)


def test_nothing_above_the_threshold_is_told_once(ours, caplog):
    model, image = load_model(ours.path), PHOTO
    strongest = ours.local_of(image).strengths[0]
    for _ in range(2):
        assert len(model.local_of(image, threshold=100.0)) == 0
    (record,) = caplog.records
    told = f"no local feature of strength 100 or more, its strongest has {strongest:.3g}"
    assert told in record.message and "give another" in record.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1.0, 0.0)}, r"scales \(1.0, 0.0\) must be above 0"),
        ({"max_features": -1}, "max_features is -1; it must be 0 or more"),
        ({"threshold": np.nan}, "threshold is nan; it must be a number"),
    ],
)
def test_wrong_numbers_of_local_features(ours, options, message):
    with pytest.raises(InputError, match=message):
        ours.local(PHOTO, **options)


def test_a_model_that_fails_is_named(ours, monkeypatch):
    def fail(*_):
        raise RuntimeError("Could not find\n variable")

    monkeypatch.setattr(CppSession, "run", fail)
    with pytest.raises(InputError, match=r"model fails in .* 'images': Could not find variable;"):
        ours.describe([PHOTO])


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (("maps",), r"no signature 'local_features': it was exported before .* export it again"),
        ((), r"no signature 'local_features': its network has no local branch"),
    ],
)
def test_without_local_features_it_says_why(tmp_path, local, message):
    model = load_model(stand_in.save(tmp_path / "model", local))
    assert np.isfinite(model.describe([PHOTO])).all()
    assert model.has_maps == bool(local)
    with pytest.raises(InputError, match=message):
        model.local_features(PHOTO)
    with pytest.raises(InputError, match="no SavedModel there"):
        load_model(tmp_path)


class _DelgLocal(tf.Module):
    """Regions and vectors of DELG's extractor, with or without descriptors of the whole photo."""

    def __init__(self, with_global):
        super().__init__()
        self.boxes = tf.Variable([[-145.0, -145, 145, 145], [-129, -113, 161, 177]])
        spec = [
            tf.TensorSpec([None, None, 3], tf.uint8, "input_image"),
            tf.TensorSpec([None], tf.float32, "input_scales"),
            tf.TensorSpec([], tf.int32, "input_max_feature_num"),
            tf.TensorSpec([], tf.float32, "input_abs_thres"),
        ]
        spec += [tf.TensorSpec([None], tf.int32, "input_global_scales_ind")] * with_global

        def extract(input_image, input_scales, input_max_feature_num, input_abs_thres, *indices):
            scores = tf.constant([3.0, 1.0])
            left = tf.where(scores >= input_abs_thres)[:input_max_feature_num, 0]
            found = {
                "boxes": tf.gather(self.boxes, left),
                "features": tf.gather(tf.constant([[3.0, 4.0], [0.0, -2.0]]), left),
                "scales": tf.ones_like(left, tf.float32),
                "scores": tf.gather(scores, left)[:, None],
            }
            for index in indices:
                rows = tf.gather(input_scales, index)[:, None] * tf.constant([[0.0, 5.0]])
                found["global_descriptors"] = rows
            return found

        self.serving_default = tf.function(extract, input_signature=spec)


@pytest.mark.parametrize("with_global", [False, True])
def test_local_features_of_a_foreign_extractor(tmp_path, with_global):
    model = load_model(_save(tmp_path / "model", _DelgLocal(with_global)), SCALES)
    found = model.local_of(PHOTO, threshold=0.5)
    np.testing.assert_array_equal(found.positions, [[0, 0], [16, 32]])
    np.testing.assert_allclose(found.descriptors, [[0.6, 0.8], [0, -1]], rtol=1e-6)
    np.testing.assert_array_equal(found.strengths, [3, 1])
    assert len(model.local_of(PHOTO, threshold=1.0)) == 2  # inclusive
    assert len(model.local_of(PHOTO, max_features=1)) == 1
    # Without rows of the whole photo, the local features by their strength: 3 (.6, .8) + (0, -1).
    summed = np.array([1.8, 1.4]) / np.hypot(1.8, 1.4)
    row = model.describe(PHOTO[None])[0]
    np.testing.assert_allclose(row, [0, 1] if with_global else summed, rtol=1e-6)
