import pickle

import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps.pictures import rankings
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import colour_histogram
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.ground_truth import GroundTruth, Query
from dolg_tf.stage.config import InputError


def test_spread_queries():
    ap = [0.1, None, 0.9, 0.5, 0.9, 0.3]
    assert rankings.spread_queries(ap, 3) == [2, 3, 0]
    assert rankings.spread_queries(ap, 99) == [2, 4, 3, 5, 0]
    assert rankings.spread_queries(ap, 1) == [2]
    assert rankings.spread_queries([None], 3) == []


def test_ranked_rows(tmp_path):
    photos = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(path)
        photos.append(Photo(str(number), path))
    rows = [np.array(x) for x in ([0], [1], [2])]
    task = GroundTruth("x", tuple("01234"), ("q",), (Query((0, 0, 3, 3), *rows),))
    query = Photo("q", photos[4].path, (0, 0, 3, 3))
    found = (np.linspace(1, 0, 5)[None], np.array([[2, 3, 1, 0, 4]]))

    def draw(level):
        return rankings.ranked_rows(task, [query], photos, found, [0], level, 4, [0.25])[0]

    row = draw("medium")
    assert [photo.kind for photo in row.found] == ["junk", "negative", "positive", "positive"]
    assert [photo.image[0, 0, 0] for photo in row.found] == [2, 3, 1, 0]
    assert [photo.score for photo in row.found] == [1, 0.75, 0.5, 0.25]
    assert row.image.shape == (4, 6, 3) and row.box == (0, 0, 3, 3)
    assert row.label == "query, AP 25 %"
    assert [p.kind for p in draw("hard").found] == ["junk", "negative", "positive", "junk"]
    query = Photo("q", photos[4].path, (0, 0, 6, 4))
    assert draw("medium").box is None  # the whole photo
    photos[2].path.write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.png"):
        draw("easy")


def test_rows_of_evaluation(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, colour in enumerate([(200, 0, 0), (0, 200, 0), (210, 10, 0), (0, 210, 0)]):
        image = np.full((6, 6, 3), colour, np.uint8)
        image[:, 3:] = 20 * number
        Image.fromarray(image).save(photos / f"{number}.png")
    truth = {
        "imlist": ["3", "2"],
        "qimlist": ["0", "1"],
        "gnd": [
            {"bbx": [0, 0, 3, 6], "easy": [0], "hard": [], "junk": []},
            {"bbx": [0, 0, 3, 6], "easy": [0], "hard": [], "junk": []},
        ],
    }
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth))
    for subset in ("query", "index"):
        colour_histogram.extract_colour_histograms(
            colour_histogram.ColourHistogramConfig(
                images=str(tmp_path / "gnd.pkl"),
                image_root=str(photos),
                subset=subset,
                output=str(tmp_path / subset),
            )
        )
    sets = (tmp_path / "query", tmp_path / "index")
    rows = rankings.rows_of_evaluation(tmp_path / "gnd.pkl", photos, *sets)
    # The green query finds the green photo first; the red one should not, says the truth.
    assert [row.image[0, 0].tolist() for row in rows] == [[0, 200, 0], [200, 0, 0]]
    assert [photo.kind for photo in rows[0].found] == ["positive", "negative"]
    assert [photo.kind for photo in rows[1].found] == ["negative", "positive"]
    assert [row.box for row in rows] == [(0, 0, 3, 6)] * 2
    assert rows[0].label == "query, AP 100 %"
    for one in ("query", "index"):
        found = descriptors.read(tmp_path / one)
        order = {"query": truth["qimlist"], "index": truth["imlist"]}[one]
        np.save(tmp_path / f"{one}.npy", 3 * np.asarray(found.select(order)))
    longer = (tmp_path / "query.npy", tmp_path / "index.npy")
    again = rankings.rows_of_evaluation(tmp_path / "gnd.pkl", photos, *longer, normalize=True)
    assert [row.label for row in again] == [row.label for row in rows]
