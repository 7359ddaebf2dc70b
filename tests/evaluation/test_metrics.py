import numpy as np
import pytest
from naive_scores import naive_scores

from dolg_tf.evaluation import metrics


def test_published_adjusted_ranks():
    adjusted = metrics.remove_junk([0, 2, 6, 10, 20], [1, 8, 9, 30])
    assert adjusted.tolist() == [0, 1, 5, 7, 17]


def test_published_average_precision():
    assert metrics.average_precision([0, 2, 5]) == pytest.approx(0.677778, abs=1e-6)


def test_average_precision_by_hand():
    assert metrics.average_precision([0, 1, 2]) == 1
    assert metrics.average_precision([1]) == (0 + 1 / 2) / 2
    assert metrics.average_precision([3]) == (0 + 1 / 4) / 2


def test_precision_divides_by_the_last_positive():
    assert metrics.precision_at([0, 2], 1) == 1
    assert metrics.precision_at([0, 2], 5) == 2 / 3
    assert metrics.precision_at([0, 7], 5) == 1 / 5
    assert metrics.precision_at([0, 7], 10) == 2 / 8


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_walk_down_the_ranking(seed):
    rng = np.random.default_rng(seed)
    total = int(rng.integers(1, 60))
    ranking = rng.permutation(total)
    rows = rng.permutation(total)
    positives = rows[: rng.integers(1, total + 1)]
    junk = rows[len(positives) : len(positives) + rng.integers(0, total)]
    place = np.argsort(ranking)
    ranks = metrics.remove_junk(np.sort(place[positives]), place[junk])
    ap, precision = naive_scores(ranking, positives, junk)
    assert metrics.average_precision(ranks) == pytest.approx(ap, abs=1e-12)
    assert [metrics.precision_at(ranks, k) for k in (1, 5, 10)] == pytest.approx(precision)


def test_mean_leaves_out_what_is_not_there():
    assert metrics.mean([0.5, None, 1.0]) == 0.75
    assert metrics.mean([None]) is None


def test_bootstrap_interval():
    values = [None, *np.random.default_rng(0).uniform(0.4, 0.8, 100)]
    low, high = metrics.bootstrap_interval(values)
    assert [low, high] == metrics.bootstrap_interval(values)
    assert [low, high] != metrics.bootstrap_interval(values, seed=1)
    # The normal approximation of the same interval.
    there = np.array(values[1:], float)
    half = 1.96 * there.std() / 10
    np.testing.assert_allclose([low, high], [there.mean() - half, there.mean() + half], atol=2e-3)
    assert metrics.bootstrap_interval([0.25]) == [0.25, 0.25]
    assert metrics.bootstrap_interval([None, None]) is None
