"""Filling a network from an official state dict is strict."""

import json
import pathlib

import numpy as np
import pytest

from dolg_tf.config import InputError
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.recipe import DolgConfig
from dolg_tf.weights.official import load_state_dict, official_entries

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def shapes():
    return json.loads((GOLDEN / "r50_no_multi_atrous.json").read_text())


@pytest.fixture(scope="module")
def network():
    return build_dolg(DolgConfig(multi_atrous=False))


@pytest.fixture
def state(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_every_tensor_is_used_or_ignored_by_name_and_every_variable_filled(network, state):
    entries = official_entries(network)
    assert {id(v) for _, v, _ in entries} == {id(v) for v in network.variables}
    ignored = load_state_dict(network, state)
    assert {name for name, _, _ in entries} | set(ignored) == set(state)
    assert all(n.endswith("num_batches_tracked") or n.startswith("desc_cls.") for n in ignored)


def test_a_missing_tensor_is_named(network, state):
    del state["globalmodel.s3.b2.f.b.weight"]
    with pytest.raises(InputError, match=r"no globalmodel\.s3\.b2\.f\.b\.weight, which"):
        load_state_dict(network, state)


def test_a_wrong_shape_is_named(network, state):
    state["fc.weight"] = np.zeros((512, 100), np.float32)
    with pytest.raises(InputError, match=r"fc\.weight has shape \(100, 512\)"):
        load_state_dict(network, state)


def test_a_tensor_left_over_is_named(network, state):
    state["localmodel.aspp.aspp.0.weight"] = np.zeros((512, 1024, 1, 1), np.float32)
    with pytest.raises(InputError, match=r"localmodel\.aspp\.aspp\.0\.weight fits nothing"):
        load_state_dict(network, state)


def test_a_backbone_that_the_authors_do_not_have_is_refused(state):
    with pytest.raises(InputError, match="bottleneck"):
        load_state_dict(build_dolg(DolgConfig(backbone="resnet18")), state)
