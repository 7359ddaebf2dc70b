"""What is remembered of visitors is bounded in number, size and time."""

import numpy as np

from dolg_tf.apps.demo import visitors
from dolg_tf.apps.demo.search import Added, Query
from dolg_tf.apps.demo.visitors import Visitors


def test_who_was_away_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr(visitors, "_MOST", 3)
    known = Visitors()
    first = [known.of(name) for name in "abc"]
    assert known.of("a") is first[0]
    known.of("d")
    assert len(known) == 3
    assert known.of("a") is first[0] and known.of("c") is first[2]
    assert known.of("b") is not first[1]


def test_photos_have_a_size_in_sum(monkeypatch):
    monkeypatch.setattr(visitors, "_BYTES", 1000)
    known = Visitors()
    known.of("a").query = Query(bytes(400), 1, 1)
    known.of("b").added = Added(("x",), np.zeros((1, 100), np.float32), (bytes(100),))
    b = known.of("b")
    assert (known.of("a").size, b.size) == (400, 500)
    c = known.of("c")
    c.query = Query(bytes(200), 1, 1)
    known.tidy()
    assert len(known) == 2 and known.of("c") is c and known.of("b") is not b
    # Whoever came last is kept, whatever they have.
    known.of("d").query = Query(bytes(2000), 1, 1)
    known.tidy()
    assert known.of("d").size == 2000 and len(known) == 1


def test_nobody_is_remembered_for_long(monkeypatch):
    known = Visitors()
    known.of("a")
    known.of("b")
    known.tidy()
    assert len(known) == 2
    monkeypatch.setattr(visitors, "_AGE", -1)
    known.tidy()
    assert len(known) == 0
