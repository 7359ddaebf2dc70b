"""Names are joined to rows by id, else where it is clear what is meant; what is done is told."""

import re

import pytest

from dolg_tf.retrieval.joining import find_rows, of_which


@pytest.mark.parametrize(
    ("names", "ids", "rows", "told"),
    [
        (["b", "a", "b"], ["a", "b", "c"], [1, 0, 1], None),
        (["b", "x"], ["a", "b"], [1, -1], None),
        (
            ["b.jpg", "a", "b.jpg"],
            ["a", "b"],
            [1, 0, 1],
            "1 of 2 .* suffix, such as 'b.jpg'",
        ),
        (["b.PNG", "x.jpg"], ["a", "b"], [1, -1], "1 of 2 photos .* such as 'b.PNG'"),
        (["b", "a.jpg"], ["a.jpg", "b.jpg"], [1, 0], "1 of 2 .*such as 'b'"),
        # Two photos are not one.
        (["a.jpg", "a.png"], ["a", "b"], [-1, -1], None),
        (["a", "a.png"], ["a", "b"], [0, -1], None),
        (["a", "b"], ["a.jpg", "a.png", "b"], [-1, 2], None),
        # Another image root.
        (["b/1", "b/2.jpg"], ["x/b/2", "x/b/1", "x/c"], [1, 0], r"all 2 .*in the folder 'x/'"),
        (["x/y/b/1", "x/y/a"], ["a", "b/1"], [1, 0], r"all 2 .*without the folder 'x/y/'"),
        (["b/1", "c/2"], ["x/b/1", "y/c/2"], [-1, -1], None),
        (["b/1", "c/2"], ["x/b/1", "x/c/3"], [-1, -1], None),
        (["1", "2"], ["x/1", "y/1", "x/2"], [-1, -1], None),
        (["x/1", "y/2"], ["1", "2"], [-1, -1], None),
        (["x/1"], ["1", "2"], [-1], None),
        (["x/1", "xy1"], ["1", "y1"], [-1, -1], None),
        ([], ["a"], [], None),
        (["a"], [], [-1], None),
    ],
)
def test_rows(caplog, names, ids, rows, told):
    assert find_rows(iter(names), ids, "the set").tolist() == rows
    assert len(caplog.messages) == (told is not None)
    if told:
        assert re.search(f"^the set: {told}", caplog.messages[0])


def test_what_is_missing_is_told_with_what_is_there():
    names, ids = ["a", "b", "c"], ["x", "a"]
    told = of_which(names, find_rows(names, ids, "s"), ids)
    assert told == "2 of 3 photos, the first is 'b'; its ids are like 'x'"
