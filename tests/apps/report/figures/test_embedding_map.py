import dataclasses
import io

import numpy as np
import pytest

from dolg_tf.apps.report.figures import embedding_map
from dolg_tf.retrieval.ground_truth import GroundTruth, Query
from dolg_tf.stage.config import InputError


def _task(positives, count):
    none = np.zeros(0, np.int64)
    rows = [Query((0, 0, 1, 1), np.array(rows, np.int64), none, none) for rows in positives]
    queries = tuple(f"x/q{i}" for i in range(len(rows)))
    return GroundTruth("t", tuple(map(str, range(count))), queries, tuple(rows))


def test_queries_that_share_a_photo_are_of_one_landmark():
    # The third query joins the first two; the fourth is apart; the last has nothing.
    task = _task([[0, 1], [2], [1, 2], [4], []], 6)
    of_query, of_index, names = embedding_map.landmarks_of(task)
    assert of_query.tolist() == [0, 0, 0, 1, 2]
    assert of_index.tolist() == [0, 0, 0, -1, 1, -1]
    assert names == ("x/q0", "x/q3", "x/q4")


def _clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:3]
    index = np.concatenate([c + rng.normal(size=(12, 8)) * 0.05 for c in centres]).astype("f4")
    task = _task([range(12), range(12, 24)], 36)
    return task, centres[:2].astype(np.float32), index


def test_clusters_stay_together_and_runs_agree():
    task, queries, index = _clusters()
    found = embedding_map.map_photos(task, queries, index)
    assert found.points.shape == (38, 2) and found.is_query.tolist() == [True] * 2 + [False] * 36
    assert found.landmark.tolist() == [0, 1] + [0] * 12 + [1] * 12 + [-1] * 12
    assert embedding_map.near_share(found) == 1.0
    again = embedding_map.map_photos(task, queries, index)
    np.testing.assert_array_equal(found.points, again.points)
    (axes,) = embedding_map.embedding_map(found).axes
    assert sum(len(c.get_offsets()) for c in axes.collections) == 38
    looks = {(tuple(c.get_facecolor()[0][:3]), len(c.get_paths()[0])) for c in axes.collections}
    assert len(looks) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["q0", "q1"]
    text = embedding_map.describe_map(found)
    assert "38 photos of 2 landmarks, 2 of them queries and 12 photos of other" in text
    assert "100 %" in text


def test_when_there_are_too_many_those_of_the_queries_come_first():
    task, queries, index = _clusters()
    found = embedding_map.map_photos(task, queries, index, most=26)
    assert len(found.points) == 26 and (found.landmark >= 0).all()
    found = embedding_map.map_photos(task, queries, index, most=14)
    assert len(found.points) == 14 and found.is_query.sum() == 2


def test_a_name_is_no_formula():
    task, queries, index = _clusters()
    found = embedding_map.map_photos(task, queries, index)
    found = dataclasses.replace(found, names=(r"a$\frac$b", "$x^2$"))
    embedding_map.embedding_map(found).savefig(io.BytesIO(), format="png")


def test_too_few_photos():
    with pytest.raises(InputError, match="9 photos are too few"):
        embedding_map.embed(np.eye(9, dtype=np.float32))
