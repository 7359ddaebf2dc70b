import numpy as np
import pytest
from place_rows import photos_of

from dolg_tf.retrieval.whitening import choose, groups
from dolg_tf.retrieval.whitening.groups import CentredRows, Links

SIZE = 128


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _partition(labels):
    return {frozenset(np.flatnonzero(labels == one)) for one in set(labels) - {groups.NONE}}


def test_neighbours_are_the_nearest_others(monkeypatch):
    monkeypatch.setattr(groups, "_BLOCK", 7)
    rows, _ = photos_of([4] * 10)
    rows[20:26] = rows[3]  # copies: each is the others' nearest, and not its own
    found = groups.nearest(rows, 5)
    products = rows.astype(np.float64) @ rows.T
    np.fill_diagonal(products, -9)
    expected = -np.sort(-products, axis=1)[:, :5]
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert not (found.rows == np.arange(len(rows))[:, None]).any()
    assert groups.nearest(rows[:3], 5).rows.shape == (3, 2)


def test_links_are_mutual_and_share_neighbours(monkeypatch):
    monkeypatch.setattr(groups, "_PAIRS", 5)
    rows, _ = photos_of([6] * 8, seed=1)
    neighbours = groups.nearest(rows, 6)
    for k in (3, 6):
        found = groups.link(neighbours, k)
        near = [set(line[:k]) for line in neighbours.rows.tolist()]
        expected = {
            (i, j)
            for i in range(len(rows))
            for j in near[i]
            if i < j and i in near[j] and len(near[i] & near[j]) >= 0.3 * k
        }
        assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
        products = np.einsum("pd,pd->p", rows[found.first], rows[found.second])
        np.testing.assert_allclose(found.scores, products, atol=1e-6)
        assert 0 < len(found.above(np.median(found.scores))) < len(found)


def test_groups_are_connected_photos_numbered_by_their_first():
    links = Links(np.array([4, 5, 0, 2]), np.array([5, 6, 2, 3]), np.ones(4, np.float32))
    more = Links(np.array([1]), np.array([8]), np.ones(1, np.float32))
    assert groups.components(9, links, more).tolist() == [0, 1, 0, 0, 2, 2, 2, -1, 1]


@pytest.mark.parametrize("block", [2, 100])
def test_alikeness_is_the_mean_over_pairs(monkeypatch, block):
    monkeypatch.setattr(groups, "_ROWS", block)
    rows, _ = photos_of([3, 5, 1, 4])
    labels = np.random.default_rng(0).permutation(np.repeat([-1, 0, 1, 2], [3, 2, 5, 3]))
    numbers = groups.renumber(labels)
    found = groups.alikeness(rows, numbers)
    for number in range(numbers.max() + 1):
        members = np.flatnonzero(numbers == number)
        pairs = [rows[i] @ rows[j] for i in members for j in members if i != j]
        assert found[number] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_a_chain_falls_apart_and_copies_are_dropped():
    angles = np.concatenate([np.linspace(0, 4, 9), [5.0, 5.01, 5.02]])
    rows = _unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    first, second = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10]), np.arange(1, 12)[np.arange(11) != 8]
    scores = np.einsum("pd,pd->p", rows[first], rows[second])
    scores[[2, 5]] = 0.62  # where it breaks first
    links = [(Links(first, second, scores), 0.6)]
    labels = choose._groups(CentredRows(rows, np.zeros(2)), links)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1]
    whole = choose._groups(CentredRows(rows, np.zeros(2)), [(links[0][0].among(angles < 1.1), 0)])
    assert whole.tolist() == [0, 0, 0] + [-1] * 9


def test_centred_rows_are_less_the_mean_and_of_unit_norm():
    rows, _ = photos_of([2] * 5)
    mean = rows.mean(axis=0)
    found = CentredRows(rows, mean)
    np.testing.assert_allclose(found[2:5], _unit(rows[2:5] - mean), atol=1e-6)
    np.testing.assert_allclose(found[np.array([7, 1])], _unit(rows[[7, 1]] - mean), atol=1e-6)
    assert not CentredRows(rows, rows[4])[4:5].any()


def test_chance_says_how_many_pairs_are_alike_by_accident():
    rows = _unit(np.random.default_rng(0).standard_normal((400, SIZE)))
    chance = groups.chance(rows, np.full(400, groups.NONE), 300, seed=0)
    products = (rows @ rows.T)[np.triu_indices(400, 1)]
    for level in (0.2, 0.3):
        counted = np.count_nonzero(products >= level)
        assert chance.links(400, np.full(400, level)) == pytest.approx(counted, rel=0.8)
    assert np.count_nonzero(products >= chance.level(400, 0.05)) <= 20
    assert chance.level(100_000, 0.05) > chance.level(400, 0.05) + 0.1


def test_a_large_place_is_not_chance():
    rows, places = photos_of([60] + [1] * 60, seed=2)
    alone = groups.chance(rows, np.where(places == 0, 0, groups.NONE), 1000, seed=0)
    mixed = groups.chance(rows, np.full(len(rows), groups.NONE), 1000, seed=0)
    assert np.median(alone.deviations) < 0.6 * np.median(mixed.deviations)


@pytest.mark.parametrize("sizes", [[6] * 20, [40, 30] + [3] * 40, [12] * 8 + [1] * 80])
def test_groups_are_places_whatever_their_sizes(sizes):
    rows, places = photos_of(sizes)
    found = choose.find_groups(rows)
    assert found.passes and found.purity > 0.7 and found.largest <= max(sizes)
    assert found.grouped == np.count_nonzero(found.labels >= 0)
    assert found.grouped > 0.5 * sum(size for size in sizes if size > 1)
    counts = [np.bincount(places[list(members)]) for members in _partition(found.labels)]
    assert sum(count.max() for count in counts) > 0.97 * found.grouped


def test_the_order_of_the_photos_does_not_matter():
    rows, _ = photos_of([8] * 12 + [1] * 10, seed=3)
    order = np.random.default_rng(1).permutation(len(rows))
    found, shuffled = choose.find_groups(rows), choose.find_groups(rows[order])
    assert found.passes and shuffled.reason == found.reason
    assert _partition(found.labels) == {
        frozenset(order[list(members)]) for members in _partition(shuffled.labels)
    }


@pytest.mark.parametrize("sizes", [[1] * 150, [1] * 5, [40]])
def test_nothing_is_learned_where_no_two_photos_show_one_place_of_several(sizes):
    rows, _ = photos_of(sizes)
    adapted = choose.adapt(rows)
    assert not adapted.grouping.passes and adapted.projection is None
    assert (adapted.grouping.labels == groups.NONE).all() and adapted.grouping.reason


def _precision(rows, places):
    """Share of the photos' nearest seven that show the same place."""
    near = groups.nearest(rows, 7).rows
    return np.mean(places[near] == places[:, None])


def test_the_whitening_serves_places_that_it_never_saw():
    rows, places = photos_of([8] * 60, shared=0.5)
    learned, others = places < 40, places >= 40
    adapted = choose.adapt(rows[learned], dimensions=48)
    assert adapted.projection.shape == (SIZE, 48) and 0 < adapted.shrinkage < 1
    white = _unit((rows - adapted.mean) @ adapted.projection)
    before, after = (_precision(x[others], places[others]) for x in (rows, white))
    assert after > before + 0.05


def test_copies_of_photos_teach_nothing():
    rows, _ = photos_of([1] * 40)
    assert not choose.adapt(np.repeat(rows, 5, axis=0)).grouping.passes
    assert not choose.find_groups(np.repeat(rows[:1], 50, axis=0)).passes


@pytest.mark.parametrize("count", [60, 300])
def test_photos_that_are_all_linked_show_nothing_of_chance(count):
    rows = _unit(np.random.default_rng(4).normal(size=(count, 3)))
    one = groups.chance(rows, np.zeros(count, np.int64), 100, 0)
    assert one.level(count, 0.05) >= 1
    assert not choose.find_groups(rows).passes
