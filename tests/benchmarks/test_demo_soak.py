"""The page's soak measures the slope of its memory, and its visitors are answered."""

import contextlib

import demo_soak
import demo_world
import numpy as np
import pytest


def test_the_slope_is_that_of_the_second_half():
    times = np.arange(0, 120, 0.5)  # seconds
    memory = np.where(times < 30, 100 + 50 * times, 1600 + 3 * times / 60)
    assert demo_soak.slope(times, memory) == pytest.approx(3)


@pytest.mark.slow
def test_visitors_are_answered(tmp_path, capsys):
    pytest.importorskip("uvicorn")
    model, built = map(str, demo_world.make(tmp_path))
    load = {"seconds": 5.0, "clients": 3, "max_side": 200}
    with contextlib.suppress(SystemExit):  # in five seconds memory may rise
        demo_soak.soak(demo_soak.DemoSoakConfig(saved_model=model, index=built, **load))
    said = capsys.readouterr().out
    assert said.startswith("{'answered': ") and ", 0 tracebacks" in said
    assert "MB per minute" in said and "answer'" not in said
