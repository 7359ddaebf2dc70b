"""Progress yields everything, and speaks now and then."""

import time

from dolg_tf.stage import progress


def test_times_are_short_words():
    assert [progress.format_seconds(s) for s in (0.4, 59, 200, 7500)] == [
        "0s",
        "59s",
        "3m20s",
        "2h05m",
    ]


def test_items_pass_and_a_line_tells_rate_and_time_left(caplog, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO"):
        assert list(progress.track("abcde", 5, "extract")) == list("abcde")
    assert caplog.messages == ["extract: 3/5 photos, 0.2/s, ETA 8s"]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(3), 3, "extract")) == [0, 1, 2]
    assert "extract" in capsys.readouterr().err


def test_who_waits_long_says_for_what(caplog):
    with caplog.at_level("INFO"), progress.waiting_for("the photos", every=0.05):
        time.sleep(0.2)
    assert caplog.messages and set(caplog.messages) == {"waiting for the photos since 0s"}
    said = len(caplog.messages)
    time.sleep(0.15)
    assert len(caplog.messages) == said  # it ended with the block
