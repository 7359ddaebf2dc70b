import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.retrieval.exact import places
from dolg_tf.retrieval.exact.places import count_places
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError


def naive_places(scores, asked, head=()):
    """Places of the rows in a whole ranking: head first, then by score, equals by row."""
    rest = [row for row in range(len(scores)) if row not in set(head)]
    ranking = [*head, *sorted(rest, key=lambda row: (-scores[row], row))]
    return [ranking.index(row) for row in asked]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def counted(*arguments, **options):
    return list(count_places(*arguments, **options))


@settings(deadline=None, max_examples=60)
@given(data=strategies.data())
def test_equals_the_sorted_ranking(data):
    """Whole numbers: products are exact, and so few of them that most scores are tied."""
    draw, whole = data.draw, strategies.integers
    rng = np.random.default_rng(draw(whole(0, 10**6)))
    count, queries, width = draw(whole(1, 30)), draw(whole(1, 4)), draw(whole(1, 6))
    index = rng.integers(-1, 2, (count, width)).astype(np.float32)
    asking = rng.integers(-1, 2, (queries, width)).astype(np.float32)
    asked = [rng.permutation(count)[: rng.integers(0, count + 1)] for _ in range(queries)]
    head = None
    if draw(strategies.booleans()):
        first = draw(whole(0, count))
        head = np.array([rng.permutation(count)[:first] for _ in range(queries)], np.int64)
    cut = draw(whole(0, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_BLOCK", draw(strategies.sampled_from([1, 3, 8, 100])))
        patch.setattr(places, "_KNOWN_BLOCK", draw(strategies.sampled_from([1, 4, 100])))
        found = counted(Rows([index[:cut], index[cut:].astype("f2")]), asking, asked, head)
    for query, rows in enumerate(asked):
        first = () if head is None else head[query].tolist()
        assert found[query].tolist() == naive_places(index @ asking[query], rows, first)


@pytest.mark.parametrize("alike", [False, True])
def test_many_scores(monkeypatch, alike):
    """Scores are whole numbers of a wide range; photos asked for are any, or the best of some."""
    monkeypatch.setattr(places, "_BLOCK", 1500)
    rng = np.random.default_rng(0)
    index, queries = rng.integers(-99, 100, (4000, 4)), rng.integers(-99, 100, (3, 4))
    scores = queries @ index.T
    asked = [rng.permutation(4000)[:50] for _ in queries]
    if alike:
        asked = list(np.argsort(-scores[:, :1000])[:, :20])
    found = counted(index.astype("f4"), queries.astype("f4"), asked)
    for query, rows in enumerate(asked):
        place = np.argsort(np.argsort(-scores[query], kind="stable"))
        assert found[query].tolist() == place[rows].tolist()


def test_equal_descriptors_tie_wherever_they_stand(monkeypatch):
    """In one matrix product alone their scores differ in the last bit, by place and block."""
    monkeypatch.setattr(places, "_BLOCK", 37)
    rng = np.random.default_rng(0)
    queries, kinds = unit(rng.standard_normal((70, 512))), unit(rng.standard_normal((5, 512)))
    kinds[:, [0, 100]] = 0
    kind_of = rng.integers(0, 5, 500)
    asked, rows = [rng.permutation(500)[:50] for _ in queries], kinds[kind_of]
    rows[::2, [0, 100]] = -0.0  # equal, but not in all bits
    found = counted(rows, queries, asked)
    for query, scores in enumerate(queries.astype(float) @ kinds.astype(float).T):
        assert found[query].tolist() == naive_places(scores[kind_of], asked[query])


def test_little_memory_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    queries, index = unit(rng.standard_normal((9, 16))), unit(rng.standard_normal((3000, 16)))
    asked = [rng.permutation(3000)[: 7 * number] for number in range(9)]
    groups = []
    scores = places.KnownRows.scores

    def noted(known, queries):
        groups.append(len(queries))
        return scores(known, queries)

    monkeypatch.setattr(places.KnownRows, "scores", noted)
    plenty = counted(index, queries, asked)
    little = counted(index, queries, asked, memory_gb=2.2e-4)
    assert groups[0] == 9 and sum(groups[1:]) == 9 and len(groups) > 2
    assert [found.tolist() for found in plenty] == [found.tolist() for found in little]


def test_what_cannot_be_counted_is_refused():
    rows = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match=r"index \(3, 4\) and queries \(1, 5\)"):
        counted(rows, np.zeros((1, 5), np.float32), [[0]])
    with pytest.raises(InputError, match="--memory_gb=1e-06 has no room for a single query"):
        counted(rows, rows, [[0], [1], [2]], memory_gb=1e-6)


def test_nothing_asked():
    rows = np.zeros((3, 4), np.float32)
    assert [found.tolist() for found in counted(rows, rows[:2], [[], []])] == [[], []]
