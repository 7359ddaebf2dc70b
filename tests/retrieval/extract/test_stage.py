import functools
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from dolg_tf.data.records import tfrecord
from dolg_tf.retrieval.extract import model, shards
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.runtime.session import CppSession
from dolg_tf.stage.config import InputError


class _TinyModel(tf.Module):
    """Obeys the contract of a `serving` SavedModel: mean colours of quarters, projected."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((12, 512), (0, 1)))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
            tf.TensorSpec([None], tf.float32, "scales"),
        ]
    )
    def images(self, images, scales):
        total = tf.zeros((tf.shape(images)[0], 512))
        for i in tf.range(tf.shape(scales)[0]):
            side = tf.maximum(
                tf.cast(tf.cast(tf.shape(images)[1:3], tf.float32) * scales[i], tf.int32), 1
            )
            scaled = tf.image.resize(tf.cast(images, tf.float32) / 255.0, side)
            quarters = tf.reshape(tf.image.resize(scaled, (2, 2)), (-1, 12))
            total += tf.math.l2_normalize(quarters @ self.kernel, axis=-1)
        return {"descriptors": tf.math.l2_normalize(total, axis=-1)}


HASH = "0123abcd"


def _save_model(path, signature="images", **info):
    model = _TinyModel()
    tf.saved_model.save(model, str(path), signatures={signature: model.images})
    (path / "assets.extra").mkdir()
    info = {"format_version": 1, "scales": [0.5, 1.0], "weights_sha256": HASH} | info
    (path / "assets.extra" / "dolg.json").write_text(json.dumps(info))
    return path


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return _save_model(tmp_path_factory.mktemp("model") / "saved_model")


SHAPES = [(40, 50), (50, 40), (40, 50), (33, 47)]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    images = {}
    for number in range(11):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        height, width = SHAPES[number % 4]
        image = np.asarray(Image.fromarray(blocks).resize((width, height)))
        images[f"sub/{number:02d}"] = image
        Image.fromarray(image).save(tmp_path / f"photos/sub/{number:02d}.png")
    return tmp_path / "photos", images


def _config(saved_model, photos, output, **options):
    return ExtractConfig(
        saved_model=str(saved_model), images=str(photos), output=str(output), **options
    )


@functools.cache
def _load(saved_model):
    return tf.saved_model.load(str(saved_model))


def _alone(saved_model, image, scales=(0.5, 1.0)):
    call = _load(saved_model).signatures["images"]
    return call(images=tf.constant(image[None]), scales=tf.constant(scales))["descriptors"][0]


@pytest.mark.parametrize(("batch_size", "shard"), [(1, 4096), (3, 5), (16, 4096), (16, 2)])
def test_rows_do_not_depend_on_batches_and_shards(
    saved_model, photos, tmp_path, batch_size, shard, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD_PHOTOS", shard)
    folder, images = photos
    found = extract(_config(saved_model, folder, tmp_path / "set", batch_size=batch_size))
    assert found.ids == tuple(sorted(images))
    assert found.meta["scales"] == [0.5, 1.0] and found.meta["model_hash"] == HASH
    assert found.meta["crop"] is False and found.meta["bad"] == []
    for id_, row in zip(found.ids, found.descriptors, strict=True):
        np.testing.assert_allclose(row, _alone(saved_model, images[id_]), atol=1e-6)


def test_rows_do_not_depend_on_the_order(saved_model, photos, tmp_path):
    folder, images = photos
    order = sorted(images, reverse=True)
    (folder / "list.csv").write_text("\n".join(["id", *order]))
    found = extract(_config(saved_model, folder / "list.csv", tmp_path / "set", batch_size=4))
    assert found.ids == tuple(order)
    for id_, row in zip(found.ids, found.descriptors, strict=True):
        np.testing.assert_allclose(row, _alone(saved_model, images[id_]), atol=1e-6)


def test_photos_of_records(saved_model, photos, tmp_path):
    """The ids are the records' own, and a damaged photo is one that cannot be read."""
    _, images = photos
    pngs = {id_.replace("/", "_"): (tmp_path / f"photos/{id_}.png").read_bytes() for id_ in images}
    pngs["sub_04"] = b"no photo"
    encoded = [tfrecord.encode(png, id_, 1, 1, None) for id_, png in pngs.items()]
    tfrecord.write_shard(tmp_path / "test-00000-of-00002", encoded[:7])
    tfrecord.write_shard(tmp_path / "test-00001-of-00002", encoded[7:])
    found = extract(_config(saved_model, tmp_path / "test-*", tmp_path / "set", max_bad=1))
    assert found.ids == tuple(id_ for id_ in pngs if id_ != "sub_04")
    for id_, row in zip(found.ids, found.descriptors, strict=True):
        alone = _alone(saved_model, images[id_.replace("_", "/")])
        np.testing.assert_allclose(row, alone, atol=1e-6)
    (bad,) = found.meta["bad"]
    assert bad["id"] == "sub_04" and "record at byte" in bad["reason"]


def test_scales_reach_the_model(saved_model, photos, tmp_path):
    folder, images = photos
    found = extract(_config(saved_model, folder, tmp_path / "set", scales=(1.0, 0.25)))
    assert found.meta["scales"] == [1.0, 0.25]
    expected = _alone(saved_model, images[found.ids[0]], (1.0, 0.25))
    np.testing.assert_allclose(found.descriptors[0], expected, atol=1e-6)
    assert np.abs(found.descriptors[0] - _alone(saved_model, images[found.ids[0]])).max() > 1e-4


def test_queries_are_cropped_and_index_photos_are_not(saved_model, photos, tmp_path):
    folder, images = photos
    names = sorted(images)
    truth = {
        "imlist": names[4:2:-1],
        "qimlist": names[:2],
        "gnd": [{"bbx": [5.7, 3.2, 25, 99], "easy": [0], "hard": [], "junk": []}] * 2,
    }
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(truth))

    def run(name, subset, **options):
        return extract(
            _config(
                saved_model, path, tmp_path / name, image_root=str(folder), subset=subset, **options
            )
        )

    queries, index = run("q", "query"), run("i", "index")
    cut = images[names[1]][3:50, 5:25]
    np.testing.assert_allclose(queries.descriptors[1], _alone(saved_model, cut), atol=1e-6)
    assert index.ids == tuple(names[4:2:-1])
    whole = _alone(saved_model, images[names[4]])
    np.testing.assert_allclose(index.descriptors[0], whole, atol=1e-6)
    assert (queries.meta["crop"], index.meta["crop"]) == (True, False)
    assert (queries.meta["upright"], index.meta["upright"]) == (False, False)
    assert (queries.meta["query_scale"], queries.meta["box_rounding"]) == ("photo", "dolg")
    assert not {"query_scale", "box_rounding"} & set(index.meta)
    with pytest.raises(InputError, match="with query_scale='photo', not 'crop'"):
        run("q", "query", query_scale="crop")
    with pytest.raises(InputError, match="with box_rounding='dolg', not 'how'"):
        run("q", "query", box_rounding="how")
    uncropped = run("u", "query", crop_queries=False)
    assert uncropped.meta["crop"] is False
    assert np.abs(uncropped.descriptors[:] - queries.descriptors[:]).max() > 1e-3


def test_bad_photos_are_listed_and_counted(saved_model, photos, tmp_path):
    folder, _ = photos
    (folder / "sub/05.png").write_bytes(b"no photo")
    (folder / "list.csv").write_text("id\nsub/04\nsub/05\nsub/gone\nsub/06\n")
    options = {"image_root": str(folder)}
    with pytest.raises(InputError, match=r"1 of 4 photos are missing.*gone"):
        extract(_config(saved_model, folder / "list.csv", tmp_path / "set", **options))
    with pytest.raises(InputError, match=r"2 unreadable photos, but --max_bad=1.*gone"):
        extract(_config(saved_model, folder / "list.csv", tmp_path / "set", max_bad=1, **options))
    assert not (tmp_path / "set").exists()
    found = extract(
        _config(saved_model, folder / "list.csv", tmp_path / "set", max_bad=2, **options)
    )
    assert found.ids == ("sub/04", "sub/06")
    assert [bad["id"] for bad in found.meta["bad"]] == ["sub/05", "sub/gone"]
    assert "corrupt: not a picture" in found.meta["bad"][0]["reason"]
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)


def test_bad_names_are_bad_photos(saved_model, photos, tmp_path):
    folder, images = photos
    names = (" lead", "a\nb", "a\x1bb", os.fsdecode(b"a\xe4"))
    for name in names:
        shutil.copy(folder / "sub/00.png", folder / f"{name}.png")
    with pytest.raises(InputError, match=r"4 unreadable photos.* rename it; repair them"):
        extract(_config(saved_model, folder, tmp_path / "set"))
    found = extract(_config(saved_model, folder, tmp_path / "set", max_bad=4))
    assert found.ids == tuple(sorted(images))
    assert {bad["id"] for bad in found.meta["bad"]} == {*names[:3], "a\\udce4"}
    assert all("rename it" in bad["reason"] for bad in found.meta["bad"])


def test_own_photos_are_turned_unless_told_otherwise(saved_model, photos, tmp_path):
    folder, images = photos
    image, exif = images["sub/00"], Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    Image.fromarray(np.rot90(image, -1)).save(folder / "sub/00.png", exif=exif)
    (folder / "list.csv").write_text("id\nsub/00\n")
    for name, options, expected in [
        ("on", {}, image),
        ("off", {"upright": False}, np.rot90(image, -1)),
    ]:
        found = extract(_config(saved_model, folder / "list.csv", tmp_path / name, **options))
        assert found.meta["upright"] is (name == "on")
        np.testing.assert_allclose(found.descriptors[0], _alone(saved_model, expected), atol=1e-6)


def test_photos_too_large_for_the_memory_are_bad(saved_model, photos, tmp_path, monkeypatch):
    """The model has memory for one photo of 40 x 50 pixels, and none for one of 33 x 47."""
    run = CppSession.run

    def limited(self, signature, inputs):
        images = inputs["images"]
        if len(images) > 1 or images.shape[1] == 33:
            raise MemoryError("OOM when allocating tensor")
        return run(self, signature, inputs)

    monkeypatch.setattr(CppSession, "run", limited)
    folder, images = photos
    with pytest.raises(InputError, match=r"03.png: 47 x 33 pixels are too many for the memory"):
        extract(_config(saved_model, folder, tmp_path / "set"))
    found = extract(_config(saved_model, folder, tmp_path / "set", max_bad=2))
    assert [bad["id"] for bad in found.meta["bad"]] == ["sub/03", "sub/07"]
    np.testing.assert_allclose(
        found.descriptors[0], _alone(saved_model, images["sub/00"]), atol=1e-6
    )


def test_large_photos_take_little_memory_and_no_import_of_tensorflow(saved_model, tmp_path):
    """200 megapixels: decoded whole they would take 1.2 GB with TensorFlow's library, of 0.4."""
    (tmp_path / "photos").mkdir()
    for name, options in (("a.jpg", {}), ("b.jpg", {"progressive": True}), ("c.png", {})):
        size = (20000, 10000) if name == "a.jpg" else (6000, 4000)
        Image.new("L", size, 90).save(tmp_path / "photos" / name, **options)
    arguments = f"saved_model={str(saved_model)!r}, images={str(tmp_path / 'photos')!r}"
    code = (
        "import sys; sys.modules |= dict.fromkeys(('tensorflow', 'keras', 'sklearn')); "
        "from dolg_tf.retrieval.extract.stage import *; "
        f"found = extract(ExtractConfig({arguments}, output={str(tmp_path / 'set')!r})); "
        # Not getrusage, which also counts the process that started this one.
        "print(len(found), open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, run.stdout.split()[-2:])
    assert count == 3 and kilobytes < 800_000


def test_finished_output_is_kept(saved_model, photos, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    first = extract(_config(saved_model, photos[0], tmp_path / "set"))

    def never(*_):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(model, "CppSession", never)
    again = extract(_config(saved_model, photos[0], tmp_path / "set", batch_size=2))
    np.testing.assert_array_equal(first.descriptors, again.descriptors)
    assert "kept" in caplog.text


def test_an_unwritable_output_fails_before_the_model_is_loaded(
    saved_model, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(model, "CppSession", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        extract(_config(saved_model, photos[0], tmp_path / "file" / "set"))


def test_output_of_another_setting_is_refused(saved_model, photos, tmp_path):
    folder, _ = photos
    output = tmp_path / "set"
    extract(_config(saved_model, folder, output))
    other = _save_model(tmp_path / "other", weights_sha256="ffff")
    with pytest.raises(InputError, match="made with model_hash='0123abcd', not 'ffff'; delete"):
        extract(_config(other, folder, output))
    for options in ({"scales": (1.0,)}, {"max_side": 20}):
        with pytest.raises(InputError, match=f"made with {next(iter(options))}="):
            extract(_config(saved_model, folder, output, **options))
    (folder / "sub/00.png").rename(folder / "sub/zz.png")
    with pytest.raises(InputError, match="made of other photos; delete it"):
        extract(_config(saved_model, folder, output))


def test_wrong_models(photos, tmp_path):
    with pytest.raises(InputError, match="no SavedModel there"):
        extract(_config(tmp_path / "none", photos[0], tmp_path / "set"))
    unsigned = _save_model(tmp_path / "unsigned", weights_sha256="")
    with pytest.raises(InputError, match="no 'weights_sha256'"):
        extract(_config(unsigned, photos[0], tmp_path / "set"))
    other_mode = _save_model(tmp_path / "other_mode", signature="serving_default")
    with pytest.raises(InputError, match=r"no signature 'images', only \['serving_default'\]"):
        extract(_config(other_mode, photos[0], tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_wrong_scales():
    with pytest.raises(InputError, match="each must be positive"):
        _config("m", "p", "o", scales=(1.0, -1.0))


def test_command_line(saved_model, photos, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dolg_tf",
        "extract",
        f"--saved_model={saved_model}",
    ]
    command += [f"--output={tmp_path / 'set'}", "--scales=1.0"]
    done = subprocess.run(
        [*command, f"--images={photos[0]}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "11 photos described, 0 bad" in done.stderr
    wrong = subprocess.run(
        [*command, f"--images={tmp_path / 'nowhere'}"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "no such file or folder" in wrong.stderr and "Traceback" not in wrong.stderr
