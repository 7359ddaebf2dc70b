import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolg_tf.retrieval.exact import blocks, search
from dolg_tf.retrieval.exact.blocks import Penalised, Pieces, nearest, with_one
from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError

FOUND = Neighbours(np.array([[0.5, 0.25], [1, -1]], np.float32), np.array([[7, 1], [0, 3]]))


def _never():
    raise AssertionError("searched again")


def _same(found, expected):
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)
        assert array.dtype == other.dtype


# --- pieces --------------------------------------------------------------------------


def test_a_piece_is_found_once(tmp_path):
    folder = tmp_path / "deep" / "out.parts"
    pieces = Pieces(folder, {"k": 2})
    _same(pieces.get("a", lambda: FOUND), FOUND)
    _same(pieces.get("a", _never), FOUND)
    # Another process, later.
    _same(Pieces(folder, {"k": 2}).get("a", _never), FOUND)
    with pytest.raises(AssertionError, match="searched again"):
        pieces.get("b", _never)
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "search.json"]


def test_pieces_of_another_run_are_refused(tmp_path):
    Pieces(tmp_path, {"k": 2, "inputs": "x"}).get("a", lambda: FOUND)
    for other in ({"k": 3, "inputs": "x"}, {"k": 2, "inputs": "y"}, {"k": 2}):
        with pytest.raises(InputError, match=r"holds the beginning of another run.*delete it"):
            Pieces(tmp_path, other)
    # A refusal changes nothing.
    _same(Pieces(tmp_path, {"k": 2, "inputs": "x"}).get("a", _never), FOUND)


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WHOLE = _npz(scores=FOUND[0], ranks=FOUND[1])
LONG = _npz(scores=np.ones((4000, 4), np.float32), ranks=np.ones((4000, 4), int))
DAMAGED = {
    "empty": b"",
    "text": b"no archive",
    "cut off": WHOLE[:100],
    "another digit": WHOLE.replace(FOUND[1].tobytes(), FOUND[1].tobytes()[:-8] + bytes(8)),
    # NumPy would read the first thousand, and nothing behind them.
    "fewer rows": LONG.replace(b"(4000, 4)", b"(1000, 4)"),
    # In the archive's directory, at its end: compressed by a method that nobody knows.
    "compression": WHOLE[:-100] + WHOLE[-100:].replace(b"\0\0\0\0\0\0!\0", b"\0\0\x63\0\0\0!\0"),
    "no ranks": _npz(scores=FOUND[0]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_piece_is_named(tmp_path, damage):
    pieces = Pieces(tmp_path, {})
    pieces.get("block 1", lambda: FOUND)
    assert DAMAGED[damage] not in (WHOLE, LONG)
    (tmp_path / "block 1.npz").write_bytes(DAMAGED[damage])
    with pytest.raises(InputError, match=r"block 1\.npz is damaged \(.*\); delete it"):
        pieces.get("block 1", _never)
    (tmp_path / "block 1.npz").unlink()
    _same(pieces.get("block 1", lambda: FOUND), FOUND)


# --- search --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_blocks_find_what_one_search_finds(tmp_path, monkeypatch, count):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    rng = np.random.default_rng(0)
    queries, index = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (count, 30))
    asked = []

    def block_of(part):
        asked.append(part)
        return queries[part]

    def run(most=None):
        found = nearest(Pieces(tmp_path, {}), "x", index, count, block_of, 7)
        return [piece for _, piece in zip(range(most or 99), found, strict=False)]

    run(2)  # and then it stops
    found = run()
    assert asked == [slice(start, min(start + 4, count)) for start in range(0, count, 4)]
    if count:
        _same(map(np.concatenate, zip(*found, strict=True)), search.search(index, queries, 7))


def test_an_interrupted_block_leaves_nothing(tmp_path, monkeypatch):
    pieces = Pieces(tmp_path, {})

    def interrupt():
        raise KeyboardInterrupt

    def interrupted_write(path, **_):
        path.write_bytes(WHOLE[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pieces.get("a", interrupt)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(np, "savez", interrupted_write)
        pieces.get("a", lambda: FOUND)
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]
    _same(pieces.get("a", lambda: FOUND), FOUND)


# --- penalties -----------------------------------------------------------------------

quarters = st.integers(-8, 8).map(lambda number: number / 4)  # products and sums are exact


@st.composite
def penalised_searches(draw):
    """Queries, index rows and their penalties, with many ties."""
    width, count = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    row = st.lists(quarters, min_size=width, max_size=width)
    queries = draw(st.lists(row, min_size=1, max_size=3))
    index = draw(st.lists(row, min_size=count, max_size=count))
    return queries, index, draw(st.lists(quarters, min_size=count, max_size=count))


@settings(max_examples=60, deadline=None)
@given(penalised_searches(), st.integers(1, 12))
def test_penalised_search_ranks_by_what_is_left(drawn, k):
    queries, index, penalties = drawn
    rows = Penalised(np.array(index, np.float32), np.array(penalties, np.float32))
    scores, ranks = search.search(rows, with_one(np.array(queries, np.float32)), k)
    for query, its_scores, its_ranks in zip(queries, scores, ranks, strict=True):
        left = [
            sum(a * b for a, b in zip(query, row, strict=True)) - penalty
            for row, penalty in zip(index, penalties, strict=True)
        ]
        expected = sorted(range(len(left)), key=lambda row: (-left[row], row))[:k]
        assert its_ranks.tolist() == expected
        assert its_scores.tolist() == [left[row] for row in expected]


def test_penalised_rows_are_read_like_rows():
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    penalties = np.arange(5, dtype=np.float32) / 10
    whole = np.concatenate([rows.astype(np.float32), -penalties[:, None]], axis=1)
    for kind in (rows, rows.astype(np.float64), Rows([rows[:2], rows[2:]])):
        found = Penalised(kind, penalties)
        assert (found.shape, found.ndim, len(found)) == ((5, 3), 2, 5)
        for key in (slice(None), slice(1, 4), slice(4, 9), np.array([4, 0, 4])):
            assert found[key].dtype == np.float32
            np.testing.assert_array_equal(found[key], whole[key])
    assert with_one(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0, 1]] * 2
    assert with_one(np.zeros((2, 3), np.float32)).dtype == np.float32
