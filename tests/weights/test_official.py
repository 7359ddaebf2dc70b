"""Filling a network from an official state dict is strict, and the way back is exact."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.stage.config import InputError
from dolg_tf.weights.official import (
    check_official,
    detect,
    head_state,
    load_state_dict,
    official_entries,
    official_name,
    state_dict,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def _shapes(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _zeros(name):
    """A state dict of a checkpoint's shapes, without its memory."""
    zero = np.float32(0)
    return {key: np.broadcast_to(zero, shape) for key, shape in _shapes(name).items()}


@pytest.fixture(scope="module")
def network():
    return build_dolg(DolgConfig(multi_atrous=False))


@pytest.fixture
def state():
    return _zeros("r50_no_multi_atrous")


def test_every_tensor_is_used_or_ignored_by_name_and_every_variable_filled(network, state):
    entries = official_entries(network)
    assert {id(v) for _, v, _ in entries} == {id(v) for v in network.variables}
    for variable in network.variables:
        variable.assign(np.full(variable.shape, np.nan))
    ignored = load_state_dict(network, state)
    assert {name for name, _, _ in entries} | set(ignored) == set(state)
    assert all(n.endswith("num_batches_tracked") or n.startswith("desc_cls.") for n in ignored)
    assert all(ignored.values())
    assert not any(np.asarray(variable).any() for variable in network.variables)


def test_a_missing_tensor_is_named(network, state):
    del state["globalmodel.s3.b2.f.b.weight"]
    with pytest.raises(InputError, match=r"it has no globalmodel\.s3\.b2\.f\.b\.weight, which"):
        load_state_dict(network, state)


def test_a_wrong_shape_is_named_before_anything_is_read(network, state):
    state["fc.weight"] = np.zeros((512, 100), np.float32)
    before = np.asarray(network.get_layer("global").bias) + 1
    network.get_layer("global").bias.assign(before)
    with pytest.raises(
        InputError, match=r"fc\.weight has shape \(512, 100\), this network's \(512, 2048\)"
    ):
        load_state_dict(network, state)
    np.testing.assert_array_equal(network.get_layer("global").bias, before)


def test_a_tensor_left_over_is_named(network, state):
    state["localmodel.aspp.aspp.0.weight"] = np.zeros((512, 1024, 1, 1), np.float32)
    with pytest.raises(InputError, match=r"localmodel\.aspp\.aspp\.0\.weight fits nothing"):
        load_state_dict(network, state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.full(512, np.nan, np.float32),
            r"512 of 512 values of its fc\.bias are NaN or infinite",
        ),
        (
            np.array([np.inf] + [0] * 511, np.float16),
            r"1 of 512 values of its fc\.bias are NaN or infinite",
        ),
        (np.zeros(512, np.int64), r"fc\.bias holds int64; weights are floating-point"),
    ],
)
def test_values_that_are_no_weights_are_refused(network, state, value, message):
    state["fc.bias"] = value
    with pytest.raises(InputError, match=message):
        load_state_dict(network, state)


@pytest.mark.parametrize(
    ("file", "backbone", "multi_atrous"),
    [
        ("r50", "resnet50", True),
        ("r50_no_multi_atrous", "resnet50", False),
        ("r101", "resnet101", True),
        ("r101_no_multi_atrous", "resnet101", False),
    ],
)
def test_the_network_is_told_by_names_and_shapes(file, backbone, multi_atrous):
    state = _zeros(file)
    state["pool_g.p"] = np.array([2.5], np.float32)
    expected = DolgConfig(
        backbone=backbone,
        multi_atrous=multi_atrous,
        gem_p=2.5,
        global_pooling="learned",
        preprocessing=OFFICIAL_PREPROCESSING,
    )
    assert detect(state) == expected
    state["fc.weight"] = np.zeros((256, 2048), np.float32)
    assert detect(state).descriptor_size == 256


def test_a_resnet152_is_told_by_its_blocks(state):
    state["pool_g.p"] = np.ones(1, np.float32)
    for stage, last, blocks in ((2, 4, 8), (3, 6, 36)):
        for block in range(last + 1, blocks + 1):
            state[f"globalmodel.s{stage}.b{block}.f.a.weight"] = np.zeros(1, np.float32)
    assert detect(state).backbone == "resnet152"
    state["globalmodel.s4.b4.f.a.weight"] = np.zeros(1, np.float32)
    with pytest.raises(InputError, match=r"its stages have \[3, 8, 36, 4\] blocks"):
        detect(state)


def test_a_gem_exponent_that_is_no_tensor_is_a_fixed_3(network, state):
    # The authors' later code has the constant 3.
    del state["pool_g.p"]
    assert (detect(state).gem_p, detect(state).global_pooling) == (3.0, "gem")
    network.get_layer("gem").p.assign([3.0])
    load_state_dict(network, state)
    assert float(np.asarray(network.get_layer("gem").p)[0]) == 3.0


def test_what_is_no_dolg_checkpoint_is_refused(state):
    with pytest.raises(
        InputError, match=r"not a DOLG checkpoint.*conv1\.weight.*--backbone_weights"
    ):
        detect({"conv1.weight": np.zeros((64, 3, 7, 7))})
    with pytest.raises(InputError, match="no tensor at all"):
        detect({})
    state["pool_g.p"] = np.zeros((2,), np.float32)
    with pytest.raises(InputError, match=r"pool_g\.p has shape \(2,\)"):
        detect(state)
    state["pool_g.p"] = np.zeros((1,), np.float32)
    with pytest.raises(InputError, match=r"pool_g\.p is 0\.0; the exponent"):
        detect(state)
    del state["pool_g.p"], state["fc.weight"]
    with pytest.raises(InputError, match=r"lacks the matrix fc\.weight"):
        detect(state)


def test_other_spellings_of_the_names():
    assert official_name("module.fc.weight") == "fc.weight"
    other, ours = "globalmodel.conv3.block23.f.a_bn.weight", "globalmodel.s3.b23.f.a_bn.weight"
    assert official_name(other) == official_name(ours) == ours
    for name in ("localmodel.conv1.weight", "globalmodel.stem.conv.weight"):
        assert official_name(name) == name


# --- the way back ----------------------------------------------------------------------


def test_there_and_back_is_exact(official_r50, standin):
    shapes = _shapes("r50")
    back = state_dict(*official_r50(True))
    assert set(shapes) - set(back) == {"desc_cls.weight", "desc_cls.t"}
    for name, array in back.items():
        assert array.shape == tuple(shapes[name]), name
        np.testing.assert_array_equal(array, standin.value(name, shapes[name]), name)


def test_a_network_for_rgb_gives_the_same_for_bgr():
    config = DolgConfig(multi_atrous=False)
    ours = build_dolg(config, seed=0)
    theirs = build_dolg(dataclasses.replace(config, preprocessing=OFFICIAL_PREPROCESSING), seed=1)
    load_state_dict(theirs, state_dict(ours, config))
    image = np.random.default_rng(0).random((1, 64, 64, 3)).astype(np.float32)
    expected = np.asarray(ours(image))
    np.testing.assert_allclose(theirs(image), expected, atol=1e-5 * np.abs(expected).max())
    # p4 too, since the descriptor of random weights sees little of it.
    p4, expected = (np.asarray(intermediates(n)(image)["p4"]) for n in (theirs, ours))
    np.testing.assert_allclose(p4, expected, atol=1e-5 * np.abs(expected).max())


def test_a_class_head_goes_along_unless_it_has_sub_centres():
    kernel = np.arange(6, dtype=np.float32).reshape(3, 2)
    back = head_state({"kernel": kernel, "t": np.float32(0.25)})
    np.testing.assert_array_equal(back["desc_cls.weight"], kernel)
    np.testing.assert_array_equal(back["desc_cls.t"], np.array([0.25], np.float32))
    assert head_state({"kernel": kernel})["desc_cls.t"] == 0
    assert head_state({"kernel": kernel[:, None]}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet18"}, "backbones resnet50, resnet101, resnet152, not resnet18"),
        ({"fusion": "global_only"}, "has fusion orthogonal; this network has global_only"),
        ({"local_channels": 512}, "has local_channels 0; this network has 512"),
        ({"dilations": (3, 6, 9)}, "has dilations"),
        ({"neck": "bn_prelu"}, "has neck linear"),
        ({"descriptor_size": 0}, "has a last layer; this network has descriptor_size 0"),
        ({"self_attention": False}, "has self_attention True"),
        ({"multi_atrous_context": False}, "has multi_atrous_context True"),
        ({"global_layer": "conv"}, "has global_layer fc"),
        ({"fused_pooling": "gem"}, "has fused_pooling average"),
    ],
)
def test_a_network_that_the_authors_code_cannot_build_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_official(DolgConfig(**change))


def test_what_the_authors_code_can_build_passes():
    check_official(DolgConfig(backbone="resnet152", local_channels=1024, descriptor_size=128))
    check_official(
        DolgConfig(multi_atrous=False, dilations=(1,), gem_p=4.6, global_pooling="learned")
    )


def test_another_normalisation_is_refused(network):
    config = DolgConfig(multi_atrous=False, preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5)))
    with pytest.raises(InputError, match="normalises with mean"):
        state_dict(network, config)


def test_an_exponent_of_3_that_is_not_trained_is_left_to_their_code(network):
    exponent = network.get_layer("gem").p
    for value, kind, written in ((3, "gem", False), (3, "learned", True), (4.6, "gem", True)):
        exponent.assign([value])
        config = DolgConfig(multi_atrous=False, global_pooling=kind)
        assert ("pool_g.p" in state_dict(network, config)) == written
