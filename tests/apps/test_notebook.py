"""The one-liners of notebooks."""

import json

import numpy as np
import pytest
import stand_in_saved_model as stand_in
from PIL import Image

from dolg_tf.apps.notebook import show_maps, show_match, show_search
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.retrieval.index.stages import BuildConfig, build
from dolg_tf.stage.config import InputError

COLOURS = {"red": (250, 20, 30), "green": (20, 250, 30), "pink": (250, 130, 140)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos in folders, a model, and an index of the photos."""
    path = tmp_path_factory.mktemp("show")
    for name, colour in COLOURS.items():
        (path / "photos" / name).mkdir(parents=True)
        image = np.full((40, 50, 3), colour, np.uint8)
        Image.fromarray(image).save(path / "photos" / name / "1.png")
    stand_in.save(path / "model")
    arguments = {"saved_model": str(path / "model"), "images": str(path / "photos")}
    extract(ExtractConfig(**arguments, output=str(path / "set"), max_side=30))
    build(BuildConfig(descriptors=str(path / "set"), output=str(path / "index")))
    return path


def test_maps_and_matches(folder):
    photos = [folder / "photos" / name / "1.png" for name in ("red", "pink")]
    model = load_model(folder / "model")
    labels = [" ".join(axes.get_ylabel().split()) for axes in show_maps(model, photos[0]).axes]
    assert "attention" in labels and "share that the global feature explains" in labels
    by_path = show_maps(folder / "model", photos[0])
    assert len(by_path.axes) == len(labels)
    titles = [axes.get_title() for axes in show_match(model, *photos).axes]
    assert titles.count("1.png") == 2


def test_a_search_shows_the_nearest_photos_first(folder):
    figure = show_search(folder / "index", folder / "model", folder / "photos/red/1.png", k=2)
    query, *found = (axes.images[0].get_array()[0, 0] for axes in figure.axes)
    assert [tuple(pixel) for pixel in (query, *found)] == [
        COLOURS["red"],
        COLOURS["red"],
        COLOURS["pink"],
    ]
    assert figure.axes[0].images[0].get_array().shape == (24, 30, 3)  # as the index was described
    assert any(text.get_text() == "1  1.000" for text in figure.texts)


def test_a_search_with_another_model_is_refused(folder, tmp_path):
    other = stand_in.save(tmp_path / "other")
    about = other / "assets.extra/dolg.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"weights_sha256": "other"}))
    with pytest.raises(InputError, match="has model_hash 'other'"):
        show_search(folder / "index", other, folder / "photos/red/1.png")
    with pytest.raises(InputError, match="no such folder"):
        show_search(
            folder / "index",
            folder / "model",
            folder / "photos/red/1.png",
            image_root=tmp_path / "none",
        )
