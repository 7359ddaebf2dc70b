"""What pictures ask of a SavedModel, and what they are told when it cannot say."""

import numpy as np
import pytest
import stand_in_saved_model as stand_in
from PIL import Image

from dolg_tf.retrieval.extract.loaded_model import LoadedModel, read_photo
from dolg_tf.retrieval.extract.model import load_describe
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage.config import InputError

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_it_gives_what_the_signatures_give(tmp_path):
    path = stand_in.save(tmp_path / "model")
    model = LoadedModel(path)
    features = model.local_features(PHOTO)
    assert features.shape == (3, 4, 3) and features.dtype == np.float32
    attention = model.maps(PHOTO)["attention"]
    np.testing.assert_allclose(attention, np.linalg.norm(features, axis=-1), rtol=1e-5)
    expected = load_describe(path, stand_in.SCALES)(PHOTO[None])[0]
    np.testing.assert_array_equal(model.describe(PHOTO), expected)


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (("maps",), r"no signature 'local_features', it was exported before .* export it again"),
        ((), r"no signature 'local_features': its network has no local branch"),
    ],
)
def test_without_local_features_it_says_why(tmp_path, local, message):
    model = LoadedModel(stand_in.save(tmp_path / "model", local))
    assert np.isfinite(model.describe(PHOTO)).all()
    with pytest.raises(InputError, match=message):
        model.local_features(PHOTO)
    with pytest.raises(InputError, match="no SavedModel there"):
        LoadedModel(tmp_path)


def test_photos_are_read_as_extraction_reads_them(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), PHOTO)
    assert read_photo(tmp_path / "a.png", 25).shape == (20, 25, 3)
    cut = read_photo(Photo("a", tmp_path / "a.png", (10, 5, 30, 15)))
    np.testing.assert_array_equal(cut, PHOTO[5:15, 10:30])
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"b\.jpg: not a photo"):
        read_photo(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"c\.jpg: No such file"):
        read_photo(tmp_path / "c.jpg")
