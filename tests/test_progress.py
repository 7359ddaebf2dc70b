"""Progress yields everything, and speaks now and then."""

from dolg_tf import progress


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
