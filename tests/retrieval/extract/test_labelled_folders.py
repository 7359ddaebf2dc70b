"""Sets and indexes of format 2: ids with suffix, of folders by label."""

import numpy as np
import pytest
from PIL import Image

from dolg_tf.data.photo_folders import Finder
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import stage
from dolg_tf.retrieval.extract.colour_histogram import colour_histograms
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.extract.photos import PhotosConfig, list_named
from dolg_tf.retrieval.index import stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import BuildConfig
from dolg_tf.retrieval.meta import of_one_folder, photo_roots
from dolg_tf.stage.config import InputError

IDS = ("one/a.heic", "one/a.jpg", "two/b/a.jpg")


@pytest.fixture
def made(tmp_path):
    """A set of photos in two folders, described by their colours."""
    for number, id_ in enumerate(IDS):
        file = tmp_path / "of" / id_
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 10), (99 * number,) * 3).save(file, "PNG")
    roots = {label: str(tmp_path / "of" / label) for label in ("one", "two")}
    listing = list_named(IDS, roots, "a list", upright=True)
    settings = PhotosConfig(images="unused", output=str(tmp_path / "set"))
    describer = Describer("colours", (1.0,), None, lambda: colour_histograms)
    return stage.describe_photos(settings, describer, listing=listing), roots


def test_a_set_says_which_folders_its_labels_are(made, tmp_path):
    found, roots = made
    assert found.ids == IDS and found.meta["format_version"] == 2
    assert found.meta["image_roots"] == roots and found.meta["image_root"] is None
    assert photo_roots(found.meta) == roots
    with pytest.raises(InputError, match="photos are in 2 folders"):
        photo_roots(found.meta, "elsewhere")


def test_an_index_keeps_them(made, tmp_path):
    _, roots = made
    stages.build(BuildConfig(descriptors=str(tmp_path / "set"), output=str(tmp_path / "index")))
    index = Index.open(tmp_path / "index")
    assert index.meta["format_version"] == 2 and index.meta["image_roots"] == roots
    assert index.ids == IDS


def test_each_id_leads_to_its_own_file(made):
    _, roots = made
    finder = Finder(roots)
    for id_ in IDS:
        label, _, name = id_.partition("/")
        assert finder.find(id_, "here")[1] == f"{roots[label]}/{name}"
    for wrong in ("three/a.jpg", "a.jpg"):
        with pytest.raises(InputError, match="in none of the folders one, two"):
            finder.find(wrong, "here")
    with pytest.raises(InputError, match="without"):
        finder.find("one/../two/b/a.jpg", "here")


def test_a_single_folder_needs_no_label_and_may_have_moved(tmp_path):
    meta = {"image_root": "/old", "image_roots": {"": "/old"}}
    assert photo_roots(meta) == {"": "/old"} and photo_roots(meta, "/new") == {"": "/new"}
    assert photo_roots({"image_root": "/old"}) == "/old"
    assert photo_roots({"image_root": "/old"}, "/new") == "/new"


def test_equal_ids_of_other_folders_are_other_photos():
    one, two = ({"image_root": None, "image_roots": {"a": root, "b": "/b"}} for root in "12")
    single = {"image_root": "/1", "image_roots": {"": "/1"}}
    assert of_one_folder(one, dict(one)) and not of_one_folder(one, two)
    assert of_one_folder(single, {"image_root": "/1"}) and not of_one_folder(single, one)
    assert not of_one_folder(one, single) and not of_one_folder(one, {"image_root": "/1"})


def test_sets_without_labels_are_written_as_before(tmp_path):
    meta = dict.fromkeys(("image_root", "crop", "max_side", "whitening", "scales", "model_hash"))
    rows = np.eye(2, dtype=np.float32)
    descriptors.write(tmp_path / "set", DescriptorSet(("a", "b"), rows, meta | {"bad": []}))
    assert descriptors.read(tmp_path / "set").meta["format_version"] == 1
