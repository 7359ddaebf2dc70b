import fractions

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_scores import naive_scores

from dolg_tf.evaluation import metrics

# --- Revisited Oxford and Paris ------------------------------------------------------


def test_published_adjusted_ranks():
    adjusted = metrics.remove_junk([0, 2, 6, 10, 20], [1, 8, 9, 30])
    assert adjusted.tolist() == [0, 1, 5, 7, 17]


def test_published_average_precision():
    assert metrics.revisited_average_precision([0, 2, 5]) == pytest.approx(0.677778, abs=1e-6)


def test_average_precision_by_hand():
    assert metrics.revisited_average_precision([0, 1, 2]) == 1
    assert metrics.revisited_average_precision([1]) == (0 + 1 / 2) / 2
    assert metrics.revisited_average_precision([3]) == (0 + 1 / 4) / 2


def test_precision_divides_by_the_last_positive():
    assert metrics.revisited_precision_at([0, 2], 1) == 1
    assert metrics.revisited_precision_at([0, 2], 5) == 2 / 3
    assert metrics.revisited_precision_at([0, 7], 5) == 1 / 5
    assert metrics.revisited_precision_at([0, 7], 10) == 2 / 8


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
    assert metrics.revisited_average_precision(ranks) == pytest.approx(ap, abs=1e-12)
    assert [metrics.revisited_precision_at(ranks, k) for k in (1, 5, 10)] == pytest.approx(
        precision
    )


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


# --- GLDv2 ---------------------------------------------------------------------------

few = settings(max_examples=40, deadline=None)
photos = st.sampled_from("abcdefgh")
rankings = st.lists(photos, max_size=12)  # with repeated photos
truths = st.sets(photos, max_size=8)


def naive_retrieval(predicted, relevant, depth):
    """(AP, precision at each place, first position), walking down the ranking once."""
    found, area, precisions, first = set(), fractions.Fraction(0), [], depth + 1
    for place in range(1, depth + 1):
        photo = predicted[place - 1] if place <= len(predicted) else None
        if photo in relevant and photo not in found:
            found.add(photo)
            area += fractions.Fraction(len(found), place)
            first = min(first, place)
        precisions.append(len(found) / place)
    wanted = min(len(relevant), depth)
    return float(area / wanted) if wanted else 0.0, precisions, first


def naive_gap(predictions, truth):
    """GAP of {query: (landmark, score)} against {query: landmarks}."""
    positives = sum(bool(landmarks) for landmarks in truth.values())
    if not positives:
        return None
    area = right = 0
    ranking = sorted(predictions.items(), key=lambda item: (-item[1][1], item[0]))
    for place, (query, (landmark, _)) in enumerate(ranking, 1):
        if landmark in truth[query]:
            right += 1
            area += fractions.Fraction(right, place)
    return float(fractions.Fraction(area) / positives)


@few
@given(rankings, truths, st.sampled_from([1, 3, 100]))
def test_retrieval_equals_the_walk(predicted, relevant, depth):
    ap, precisions, first = naive_retrieval(predicted, relevant, depth)
    hits = metrics.find_hits(predicted, relevant, depth)
    assert len(hits) == min(len(predicted), depth)
    assert metrics.gldv2_average_precision(hits, len(relevant), depth) == pytest.approx(ap)
    assert metrics.first_position(hits, depth) == first
    for k in {1, min(5, depth), depth}:
        assert metrics.gldv2_precision_at(hits, k) == precisions[k - 1]


@few
@given(rankings, truths)
def test_a_repeated_photo_keeps_its_place(predicted, relevant):
    """It counts like an irrelevant photo and pushes the others down."""
    once = [photo if photo not in predicted[:i] else "-" for i, photo in enumerate(predicted)]
    hits = metrics.find_hits(predicted, relevant)
    np.testing.assert_array_equal(hits, metrics.find_hits(once, relevant))
    assert hits.sum() == len(relevant & set(predicted))


@few
@given(st.lists(photos, unique=True, min_size=1))
def test_what_is_wanted_first_scores_one(predicted):
    hits = metrics.find_hits([*predicted, "x", "y"], set(predicted))
    assert metrics.gldv2_average_precision(hits, len(predicted)) == 1


def test_more_relevant_than_places():
    hits = metrics.find_hits(list("abc"), set("abcde"), depth=3)
    assert metrics.gldv2_average_precision(hits, relevant=5, depth=3) == 1


predictions = st.dictionaries(
    st.integers(0, 30).map(str),
    # Scores with many ties; None: no prediction.
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from([None, -1.0, 0.0, 0.5, 0.5, 2.0]),
        st.sets(st.sampled_from("ab")),
    ),
    min_size=1,
    max_size=12,
)


def _arrays(drawn):
    """The arguments of the functions, from {query: (landmark, score or None, truth)}."""
    ids = [query for query, (_, score, _) in drawn.items() if score is not None]
    scores = np.array([drawn[query][1] for query in ids])
    ids = [ids[i] for i in metrics.confidence_order(ids, scores)]
    correct = np.array([drawn[query][0] in drawn[query][2] for query in ids], bool)
    others = [query for query in drawn if query not in ids]
    positive = np.array([bool(drawn[query][2]) for query in ids + others], bool)
    return ids, correct, positive


@few
@given(predictions)
def test_gap_equals_the_walk(drawn):
    truth = {query: landmarks for query, (_, _, landmarks) in drawn.items()}
    made = {query: (name, score) for query, (name, score, _) in drawn.items() if score is not None}
    _, correct, positive = _arrays(drawn)
    found = metrics.global_average_precision(correct, int(positive.sum()))
    assert found == pytest.approx(naive_gap(made, truth))


@few
@given(predictions)
def test_order_is_by_score_then_id(drawn):
    ids, _, _ = _arrays(drawn)
    keys = [(-drawn[query][1], query) for query in ids]
    assert keys == sorted(keys)


@few
@given(predictions)
def test_gap_interval_equals_gap_of_the_drawn_queries(drawn):
    """The oracle scores each resample anew, its queries renamed so that none is lost."""
    ids, correct, positive = _arrays(drawn)
    queries = ids + [query for query in drawn if query not in ids]
    rng, values = np.random.default_rng(7), []
    for _ in range(5):
        made, truth = {}, {}
        for number, i in enumerate(rng.integers(len(queries), size=len(queries))):
            name, score, landmarks = drawn[queries[i]]
            renamed = f"{queries[i]}-{number:03d}"
            truth[renamed] = landmarks
            if score is not None:
                made[renamed] = (name, score)
        # Copies stay side by side even if another query has the same score: "-" sorts before
        # every digit.
        values.append(naive_gap(made, truth))
    values = [value for value in values if value is not None]
    padded = np.concatenate([correct, np.zeros(len(queries) - len(ids), bool)])
    found = metrics.gap_interval(padded, positive, len(ids), seed=7, resamples=5)
    if not values:
        assert found is None
    else:
        assert found == pytest.approx(list(np.quantile(values, [0.025, 0.975])))


def test_gap_interval_of_one_query():
    one = np.ones(1, bool)
    assert metrics.gap_interval(one, one, 1) == [1, 1]
    assert metrics.gap_interval(~one, one, 0) == [0, 0]
    assert metrics.gap_interval(~one, ~one, 1) is None
    assert metrics.global_average_precision(~one, 0) is None
