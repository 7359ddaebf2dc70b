"""What is kept of visitors' photos is bounded in number, size and time."""

from dolg_tf.apps.demo import sent
from dolg_tf.apps.demo.search import Query
from dolg_tf.apps.demo.sent import Sent


def _photo(size):
    return Query("a.jpg", bytes(size), 1, 1)


def test_what_was_named_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(sent, "_MOST", 3)
    known, photos = Sent(), [_photo(1) for _ in range(4)]
    words = [known.keep(photo) for photo in photos[:3]]
    assert known.find(words[0]) is photos[0] and len(set(words)) == 3
    words.append(known.keep(photos[3]))
    assert len(known) == 3
    assert [known.find(word) for word in words] == [photos[0], None, *photos[2:]]
    assert known.find("") is None


def test_photos_have_a_size_in_sum(monkeypatch):
    monkeypatch.setattr(sent, "_BYTES", 1000)
    known = Sent()
    words = [known.keep(_photo(size)) for size in (500, 400, 200)]
    assert [known.find(word) is not None for word in words] == [False, True, True]
    # Whoever came last is kept, whatever they have.
    last = known.keep(_photo(2000))
    assert known.find(last) is not None and len(known) == 1


def test_nothing_is_kept_for_long(monkeypatch):
    known = Sent()
    known.keep(_photo(1))
    known.keep(_photo(1))
    known.tidy()
    assert len(known) == 2
    monkeypatch.setattr(sent, "_AGE", -1)
    known.tidy()
    assert len(known) == 0
