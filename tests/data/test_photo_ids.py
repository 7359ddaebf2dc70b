"""One photo has one id, whichever list names it."""

import pytest
from PIL import Image

from dolg_tf.data.own_photos import write_ground_truths
from dolg_tf.data.photo_ids import id_of
from dolg_tf.data.records.label_lists import ListsConfig, read_photos
from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
from dolg_tf.retrieval.ground_truth import load_ground_truth

# An id keeps what is no suffix of a photo: these two files are two photos.
NAMES = {"./a/x.webp": "a/x.webp", "a//x.JPG": "a/x", "b/v1.2": "b/v1.2", "b/x.y.png": "b/x.y"}


@pytest.mark.parametrize("name", NAMES)
def test_ids(name):
    assert id_of(name) == id_of(NAMES[name]) == NAMES[name]


def test_all_lists_have_the_same_ids(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 10)).save(tmp_path / name, "PNG")
    labels = tmp_path / "labels.csv"

    def write(lines):
        labels.write_text("\n".join(["path,landmark,split", *lines]) + "\n")

    write(f"{name},arch,train" for name in NAMES)
    table, _ = read_photos(ListsConfig(labels_csv=str(labels)))
    assert sorted(photo.id for photo in table) == sorted(NAMES.values())
    listed = list_photos(PhotosConfig(images=str(labels), output="unused")).photos
    assert [photo.id for photo in listed] == list(NAMES.values())

    splits = ("query", "index", "index", "train")
    write(f"{name},arch,{split}" for name, split in zip(NAMES, splits, strict=True))
    path = write_ground_truths(labels, tmp_path)["seen"]
    truth = load_ground_truth(path)
    assert (*truth.query_ids, *truth.index_ids) == tuple(NAMES.values())[:3]
    for subset in ("query", "index"):
        settings = PhotosConfig(images=str(path), output="unused", subset=subset)
        assert all(photo.path.exists() for photo in list_photos(settings).photos)
