import numpy as np
import pytest

from dolg_tf.apps.report.figures import similarities
from dolg_tf.stage.config import InputError


def _blocks(scores, same, size=7):
    def pairs():
        for start in range(0, len(scores), size):
            part = slice(start, start + size)
            yield np.zeros(len(scores[part]), np.int64), scores[part], same[part]

    return pairs


def test_counts_equal_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    scores, same = rng.normal(size=200).astype(np.float32), rng.random(200) < 0.3
    threshold = float(scores[3])
    found = similarities.count_similarities(_blocks(scores, same), threshold, bins=9)
    assert found.edges[0] == scores.min() and found.edges[-1] == scores.max()
    slow = np.zeros((2, 9), int)
    for score, positive in zip(scores.tolist(), same, strict=True):
        last = [i for i in range(9) if found.edges[i] <= score][-1]
        slow[0 if positive else 1, last] += 1
    np.testing.assert_array_equal([found.positive, found.negative], slow)
    passed = [sum(s >= threshold for s in scores[kind].tolist()) for kind in (same, ~same)]
    assert found.reached == tuple(passed)
    width = found.edges[1] - found.edges[0]
    assert found.medians[0] == pytest.approx(np.median(scores[same]))
    assert abs(found.medians[1] - np.median(scores[~same])) <= width / 2


def test_the_diagram_shows_shares_of_each_kind_and_the_threshold():
    scores = np.array([0.0, 0.5, 0.5, 1.0], np.float32)
    pairs = _blocks(scores, np.array([False, False, True, True]))
    found = similarities.count_similarities(pairs, 0.75, bins=2)
    (axes,) = similarities.similarity_histogram(found).axes
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    assert [patch.get_data().values.tolist() for patch in outlines] == [[0, 100], [50, 50]]
    assert axes.lines[0].get_xdata() == [0.75, 0.75]
    text = similarities.describe_similarities(found)
    assert "2 pairs of one place" in text and "2 pairs of different places" in text
    assert "reached by 50.0 % of the former and 0.000 % of the latter" in text
    plain = similarities.count_similarities(pairs)
    assert not similarities.similarity_histogram(plain).axes[0].lines
    assert "threshold" not in similarities.describe_similarities(plain)


def test_equal_scores_are_counted():
    pairs = _blocks(np.ones(4, np.float32), np.array([True, False, False, True]))
    found = similarities.count_similarities(pairs)
    assert (found.positive.sum(), found.negative.sum()) == (2, 2)
    assert similarities.similarity_histogram(found)


def test_both_kinds_are_needed():
    with pytest.raises(InputError, match="2 pairs show the same place, 0 do not"):
        similarities.count_similarities(_blocks(np.ones(2, np.float32), np.array([True, True])))
