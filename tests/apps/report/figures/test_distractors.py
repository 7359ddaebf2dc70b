import numpy as np

from dolg_tf.apps.report.figures import distractors
from dolg_tf.evaluation.revisited.score import score_descriptors
from dolg_tf.retrieval.ground_truth import GroundTruth, Query


def test_nested_sizes():
    assert distractors.nested_sizes(1_001_001) == [0, 1001, 10010, 100100, 1001001]
    assert distractors.nested_sizes(25) == [0, 2, 25]
    assert distractors.nested_sizes(3) == [0, 3]


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_scores_equal_those_of_each_part_alone():
    rng = np.random.default_rng(0)
    index, queries, others = (_unit(rng.normal(size=(n, 8))) for n in (20, 3, 200))
    none = np.zeros(0, np.int64)
    rows = [Query((0, 0, 1, 1), np.array([i, i + 9]), none, none) for i in range(3)]
    task = GroundTruth("t", tuple(map(str, range(20))), tuple("abc"), tuple(rows))
    found = distractors.scores_by_distractors(task, queries, index, others, seed=3)
    assert found["sizes"] == [0, 2, 20, 200]
    order = np.random.default_rng(3).permutation(200)
    for place, size in enumerate(found["sizes"]):
        together = np.concatenate([index, others[order[:size]]])
        alone = score_descriptors(task, queries, together)
        assert found["medium"][place] == alone.medium.mAP
    assert found["medium"][0] > found["medium"][-1] and found["hard"] == [None] * 4
    (axes,) = distractors.distractor_curve(found).axes
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * np.array(found["medium"]))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "2", "20", "200"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["easy", "medium"]
    text = distractors.describe_distractors(found)
    assert "200 distractors" in text and "hard" not in text
