import numpy as np
import pytest

from dolg_tf.data import protos
from dolg_tf.data.records import tfrecord
from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
from dolg_tf.stage.config import InputError

JPEG_HEAD = b"\xff\xd8\xff\xe0"
PHOTOS = {f"photo {number}": bytes([number]) * (1 + 37 * number) for number in range(7)}


def tf_example(encoded, upright):
    """Returns a serialised example with the feature image/upright; None: without it."""
    example = protos.parse(protos.example_class(), encoded)
    if upright is not None:
        feature = example.features.feature.add(key="image/upright").value
        feature.int64_list.value.append(upright)
    return example.SerializeToString()


def _list(images, **options):
    return list_photos(PhotosConfig(images=str(images), output="unused", **options))


def _write(path, photos):
    tfrecord.write_shard(path, [tfrecord.encode(data, id_, 3, 4, 5) for id_, data in photos])


@pytest.fixture
def folder(tmp_path):
    photos = list(PHOTOS.items())
    _write(tmp_path / "train-00000-of-00003", photos[:4])
    _write(tmp_path / "train-00001-of-00003", [])
    _write(tmp_path / "train-00002-of-00003", photos[4:])
    return tmp_path


def test_each_record_is_a_photo(folder):
    listing = _list(folder / "train-*")
    assert [photo.id for photo in listing.photos] == list(PHOTOS)
    assert [photo.read() for photo in listing.photos] == list(PHOTOS.values())
    assert listing.image_root == folder and not listing.crop
    assert [photo.id for photo in _list(folder / "train-00002-of-00003").photos] == list(PHOTOS)[4:]


def test_a_pattern_of_folders(folder):
    (folder / "deep").mkdir()
    (folder / "train-00000-of-00003").rename(folder / "deep/train-0")
    listing = _list(folder / "d*/train-*")
    assert len(listing.photos) == 4 and listing.image_root == folder


def test_records_say_whether_their_photos_are_turned(folder):
    def put(name, *turned):
        examples = []
        for number, upright in enumerate(turned):
            example = tf_example(tfrecord.encode(JPEG_HEAD, f"{name}{number}", 1, 1, None), upright)
            examples.append(example)
        tfrecord.write_shard(folder / name, examples)

    put("turned", 1, 1)
    put("mixed", 1, 0, None)
    for images, asked, upright, turn in [
        ("turned", None, True, {False}),
        ("turned", True, True, {False}),
        ("train-*", None, False, {False}),
        ("train-*", False, False, {False}),
        ("train-*", True, True, {True}),
        ("mixed", True, True, {False, True}),
    ]:
        listing = _list(folder / images, upright=asked)
        assert listing.upright is upright and {photo.turn for photo in listing.photos} == turn
    with pytest.raises(InputError, match=r"1 of 3 records hold .* give --upright to turn all"):
        _list(folder / "mixed")
    with pytest.raises(InputError, match=r"2 of 2 records hold .* which --noupright cannot undo"):
        _list(folder / "turned", upright=False)


def test_the_size_of_a_record_is_in_the_fingerprint(folder):
    def prints():
        listing = _list(folder / "train-*")
        sizes = listing.sizes()
        assert (sizes > 0).all()
        return listing.fingerprints(sizes, 4)

    before = prints()
    assert before == prints()
    _write(folder / "train-00002-of-00003", [(id_, b"x") for id_ in list(PHOTOS)[4:]])
    after = prints()
    assert before.names == after.names and before.images != after.images
    assert [x == y for x, y in zip(before.shards, after.shards, strict=True)] == [True, False]


@pytest.mark.parametrize("place", [30, -10])
def test_a_damaged_record_is_told_when_it_is_read(folder, place):
    path = folder / "train-00002-of-00003"
    data = np.fromfile(path, np.uint8)
    second = _list(path).photos[1]
    place += second.start if place > 0 else second.start + second.record_size
    data[place] ^= 1
    data.tofile(path)
    with pytest.raises(
        (InputError, ValueError), match=r"checksum is wrong|no image/|not a tf.train"
    ):
        for photo in _list(path).photos:
            photo.read()


def test_what_is_no_photo_record(folder):
    def put(*examples):
        tfrecord.write_shard(folder / "odd", examples)

    put(tfrecord.encode(b"x", "", 1, 1, None))
    with pytest.raises(InputError, match="odd, record at byte 0: no image/id"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None), b"\xff" * 9)
    with pytest.raises(InputError, match=r"odd, record at byte \d+: not a tf.train.Example"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None).replace(b"image/id", b"image/ix"))
    with pytest.raises(InputError, match="no image/id"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None).replace(b"image/encoded", b"image/encodeX"))
    with pytest.raises(ValueError, match="no image/encoded"):
        _list(folder / "odd").photos[0].read()
    put(*[tfrecord.encode(b"x", "a", 1, 1, None)] * 2)
    with pytest.raises(InputError, match="record at byte 0 have the same id, 'a'"):
        _list(folder / "odd")


def test_files_that_are_none(folder):
    with pytest.raises(InputError, match="no file matches"):
        _list(folder / "valid-*")
    path = folder / "train-00000-of-00003"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="the file ends inside the record"):
        _list(folder / "train-*")
    (folder / "notes").write_text("no record at all")
    with pytest.raises(InputError, match="this is not a TFRecord file"):
        _list(folder / "notes")
    with pytest.raises(InputError, match="takes no --subset"):
        _list(folder / "train-*", subset="query")
