"""The order of the runs of `benchmarks/ablations.py`."""

import argparse

import pytest
from ablation_table import FULL, SPLITS
from ablations import RATES, VARIANTS, _jobs, _note, base_config

CONFIG = base_config("efficientnet_lite0", 128)


def _arguments(**changed):
    return argparse.Namespace(**{"full": False, "seeds": 2, "steps": 100, "variants": []} | changed)


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
