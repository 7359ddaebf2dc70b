"""The order of the runs of `benchmarks/quality/ablations.py`, what each trains, and the table."""

import argparse

import ablations
import numpy as np
import pytest
from ablation_photos import Maps
from ablation_table import FULL, SPLITS, markdown, statistics
from ablations import RATES, VARIANTS, _jobs, _note, base_config

from dolg_tf.modeling.config import DolgConfig

CONFIG = base_config("efficientnet_lite0", 128)


def _arguments(**changed):
    options = {"full": False, "seeds": 2, "steps": 100, "variants": [], "rates": []}
    return argparse.Namespace(**options | {"backbone_lr": 0.0} | changed)


def test_a_variant_has_its_rates_before_its_first_seed_and_is_then_read_with_the_others():
    state, done = {"chosen": {}, "runs": {}}, []
    while True:
        what, jobs = _jobs(state, _arguments(variants=["Hadamard"]), CONFIG)
        if not jobs:
            break
        done.append(what)
        for job in jobs:
            assert job.choose or job.rate == RATES[0] == 3e-4
            _note(state, job, {"AP": [1 - job.rate], "hit": [1.0]})
    assert done == [
        f"{FULL}, learning rates",
        f"{FULL}, seed 0",
        "Hadamard, learning rates",
        "Hadamard, seed 0",
        f"{FULL}, seed 1",
        "Hadamard, seed 1",
    ]
    assert set(state["runs"]) == set(state["chosen"]) == {FULL, "Hadamard"}
    assert set(state["runs"]["Hadamard"]) == {"0", "1"}
    assert tuple(state["runs"]["Hadamard"]["1"]) == SPLITS


def test_what_is_done_is_not_done_again():
    state = {"chosen": {}, "runs": {}}
    _, (first, *others) = _jobs(state, _arguments(), CONFIG)
    _note(state, first, {"AP": [0.5], "hit": [1.0]})
    assert _jobs(state, _arguments(), CONFIG)[1] == others


@pytest.mark.parametrize(("options", "count"), [({}, 8), ({"full": True}, 14)])
def test_every_variant_has_its_turn(options, count):
    state, turns = {"chosen": {}, "runs": {}}, []
    while jobs := _jobs(state, _arguments(**options), CONFIG)[1]:
        turns.append(jobs[0].variant)
        for job in jobs:
            _note(state, job, {"AP": [0.5], "hit": [1.0]})
    assert list(dict.fromkeys(turns))[: len(VARIANTS)] == list(VARIANTS)
    assert len(set(turns)) == count


def test_one_rate_is_not_chosen():
    what, jobs = _jobs({"chosen": {}, "runs": {}}, _arguments(rates=[2e-4]), CONFIG)
    assert what == f"{FULL}, seed 0" and len(jobs) == len(SPLITS)
    assert {job.rate for job in jobs} == {2e-4} and not any(job.choose for job in jobs)


def test_of_photos_the_backbone_learns_too_but_not_its_batch_norms(monkeypatch):
    kept = []

    def build_top(*arguments):
        top, names = build(*arguments)
        kept.append((top, [v.numpy() for v in top.get_layer("backbone").variables]))
        return top, names

    build = ablations.build_top
    monkeypatch.setattr(ablations, "build_top", build_top)
    monkeypatch.setattr(ablations.imagenet, "load_backbone", lambda *_: None)
    config = DolgConfig(backbone="resnet17_small", local_channels=16, dilations=(1, 2))
    photos = np.random.default_rng(0).integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
    maps = Maps({"photo": photos}, np.arange(8) % 2)
    (some,) = maps.batch(np.array([3, 5]), np.array([1, 0]))
    assert some.dtype == np.float32 and some[1, 0, 0, 0] == photos[5, 0, 0, 0, 0] / np.float32(255)
    rows = ablations.train(config, maps, 1e-2, 0.1, 2, 0)(maps)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    ((top, before),) = kept
    moved = {
        variable.path: np.abs(variable.numpy() - old).max()
        for variable, old in zip(top.get_layer("backbone").variables, before, strict=True)
    }
    kernels = [path for path in moved if path.endswith("/kernel")]
    # Adam's first step is as long as the rate, a tenth of 0.01; the second is half of that.
    assert 5e-4 < max(moved[path] for path in kernels) < 2e-3
    assert not any(moved[path] for path in moved.keys() - set(kernels))


def test_the_table_compares_seeds_and_queries_in_pairs():
    def run(lost):
        return {"seen": {"AP": [0.8 - lost, 0.6 - lost], "hit": [1.0, 0.0]}}

    runs = {FULL: {"0": run(0), "1": run(0.1)}, "Hadamard": {"0": run(0.2), "1": run(0.3)}}
    state = {"runs": runs, "untrained": run(0.5), "landmarks": {"seen": [0, 1]}}
    *_, untrained, full, other = markdown(statistics(state, FULL)).splitlines()[:5]
    assert untrained == "| untrained GeM | seen | 20.0 | 50.0 |  |  |  | 1 |"
    assert full == "| full model | seen | 65.0 ± 5.0 | 50.0 |  |  | 80.50 / 89.81 | 2 |"
    # Every query of both seeds loses 20, so no resample loses anything else.
    less = "-20.0 (-20.0 to -20.0) | worse"
    assert other == f"| Hadamard | seen | 45.0 ± 5.0 | 50.0 | {less} | 79.20 / 89.91 | 2 |"
