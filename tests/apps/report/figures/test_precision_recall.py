import numpy as np
import pytest

from dolg_tf.apps.report.figures import precision_recall as pr


def _slow(ranks):
    """Walks down the ranking; the precision at recall i/100 is the best from there on."""
    relevant = [rank in set(ranks) for rank in range(max(ranks) + 1)]
    points, found = [], 0
    for place, right in enumerate(relevant, 1):
        found += right
        points.append((found, found / place))
    return [
        max(precision for found, precision in points if 100 * found >= i * len(ranks))
        for i in range(101)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 101])
def test_interpolated_precision_equals_the_walk(count):
    ranks = np.sort(np.random.default_rng(count).permutation(300)[:count])
    np.testing.assert_allclose(pr.interpolated_precision(ranks), _slow(ranks.tolist()), rtol=1e-12)


def test_mean_precision_takes_junk_out_and_leaves_empty_queries_out():
    none = np.zeros(0, np.int64)
    places = [
        {"easy": np.array([1]), "hard": none, "junk": np.array([0])},  # first, without its junk
        {"easy": np.array([1]), "hard": none, "junk": none},  # second
        {"easy": none, "hard": none, "junk": np.array([3])},
    ]
    found = pr.mean_precision(places)
    assert set(found) == {"easy", "medium"}
    np.testing.assert_allclose(found["easy"], 0.75)


def test_the_curves_drawn_are_those_given():
    curves = {"easy": np.linspace(1, 0.5, 101), "hard": np.linspace(0.5, 0, 101)}
    scores = {level: {"mAP": 0.25} for level in curves}
    (axes,) = pr.precision_recall(curves, scores).axes
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * curves["hard"])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["easy, mAP 25.0 %", "hard, mAP 25.0 %"]
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    assert "hard 45.0 % at 10 % recall, 25.0 % at 50 %" in pr.describe_precision_recall(curves)
