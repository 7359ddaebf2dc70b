import numpy as np
import pytest

from dolg_tf.retrieval.rows import Rows, blocks

RNG = np.random.default_rng(0)
COUNTS = (2, 4, 0, 1)
PARTS = [RNG.standard_normal((n, 3)).astype(np.float16 if n == 4 else "f4") for n in COUNTS]
WHOLE = np.concatenate(PARTS, dtype=np.float32)


@pytest.fixture(params=["arrays", "nested", "one array"])
def rows(request):
    if request.param == "one array":
        return Rows([WHOLE])
    return Rows(PARTS) if request.param == "arrays" else Rows([Rows(PARTS[:2]), *PARTS[2:]])


def test_slices_rows_and_all_are_float32(rows):
    assert rows.shape == (7, 3) and len(rows) == 7
    for start in range(8):
        for stop in range(8):
            np.testing.assert_array_equal(rows[start:stop], WHOLE[start:stop])
    for key in ([], [3], [6, 0, 0, 5], [[1, 2], [6, 3]]):
        np.testing.assert_array_equal(rows[np.array(key, int)], WHOLE[np.array(key, int)])
    np.testing.assert_array_equal(np.asarray(rows), WHOLE)
    assert rows[2:5].dtype == rows[[3]].dtype == np.asarray(rows).dtype == np.float32


def test_blocks_cover_each_row_once(rows):
    for size in (1, 3, 100):
        for whole in (rows, WHOLE):
            found = list(blocks(whole, size))
            assert [start for start, _ in found] == list(range(0, 7, size))
            np.testing.assert_array_equal(np.concatenate([part for _, part in found]), WHOLE)


def test_what_is_not_there_is_refused(rows):
    for key in ([7], [-1], slice(0, 4, 2)):
        with pytest.raises(IndexError):
            rows[key]
    with pytest.raises(ValueError, match="different shapes"):
        Rows([WHOLE, WHOLE[:, :2]])
