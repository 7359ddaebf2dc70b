"""HOW's network against numbers of its authors' code, and against slow sums."""

import pathlib

import numpy as np
import pytest

from dolg_tf.modeling import how
from dolg_tf.modeling.config import DolgConfig, HowConfig
from dolg_tf.modeling.model_dir import (
    build_network,
    checkpoint_variables,
    load_network,
    save_dolg,
    weights_hash,
)
from dolg_tf.stage.config import InputError

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "how_r50.npz"))
SMALL = HowConfig(backbone="resnet17_small", local_source="p5", dimensions=8)


def _close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def outputs(how_r50, standin):
    """What the network computes of the smaller photo of the golden numbers."""
    photo = standin.image(97, 130).astype(np.float32)[None] / 255
    model = how.intermediates(how_r50[0])
    return {name: np.asarray(array)[0] for name, array in model(photo).items()}


def test_maps_are_the_authors(outputs):
    _close(outputs["features"][..., ::128], GOLDEN["97x130/backbone"])
    _close(outputs["smoothed"][..., ::128], GOLDEN["97x130/smoothed"])
    _close(outputs["reduced"][..., ::4], GOLDEN["97x130/reduced"])
    _close(outputs["attention"], GOLDEN["97x130/attention_raw"])


def test_the_descriptor_is_the_authors_and_the_sum_of_attended_features(outputs):
    total = np.zeros(128)
    for feature, weight in zip(
        outputs["reduced"].reshape(-1, 128), outputs["attention"].ravel(), strict=True
    ):
        total += feature.astype(np.float64) * weight
    _close(outputs["descriptor"], total)
    _close(
        np.asarray(how.unit(outputs["descriptor"][None]))[0], GOLDEN["97x130/global_train_scale"]
    )


def test_smoothing_is_a_mean_of_the_neighbours_that_are_there(outputs):
    features = outputs["features"][..., :3].astype(np.float64)
    height, width, _ = features.shape
    slow = np.empty_like(features)
    for y in range(height):
        for x in range(width):
            cells = features[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            slow[y, x] = cells.mean(axis=(0, 1))
    np.testing.assert_allclose(outputs["smoothed"][..., :3], slow, rtol=1e-4, atol=1e-6)


def test_networks_have_the_authors_sizes(how_r50):
    def trained(network):
        return sum(np.prod(variable.shape) for variable in network.trainable_variables)

    assert trained(how_r50[0]) == 8_674_496
    network = build_network(HowConfig(backbone="resnet18", local_source="p5"))
    assert trained(network) == 11_242_176
    assert network.get_layer("p5").output.shape[-1] == 512
    assert len(checkpoint_variables(network)) == len(network.variables)


def test_the_strides_are_those_told():
    for source, stride in how.STRIDES.items():
        config = HowConfig(backbone="efficientnet_lite0", local_source=source, dimensions=8)
        model = how.intermediates(how.build_how(config))
        shape = model(np.zeros((1, 97, 130, 3), np.float32))["attention"].shape
        assert tuple(shape) == (1, -(-97 // stride), -(-130 // stride))


def test_no_more_numbers_than_channels():
    with pytest.raises(InputError, match="--dimensions=113: p4 of efficientnet_lite0 has 112"):
        how.build_how(HowConfig(backbone="efficientnet_lite0", dimensions=113))


def test_half_precision_is_of_the_backbone_alone():
    network = how.build_how(SMALL, "mixed_bfloat16", seed=0)
    assert {str(array.dtype) for array in how.intermediates(network).output.values()} == {"float32"}


def test_it_is_written_and_read_like_a_dolg(tmp_path):
    network = how.build_how(SMALL, seed=0)
    save_dolg(network, SMALL, tmp_path / "model", {"source": "test"})
    loaded = load_network(tmp_path / "model")
    assert (loaded.config, loaded.provenance) == (SMALL, {"source": "test"})
    digest = weights_hash(network, SMALL)
    assert weights_hash(loaded.network, loaded.config) == digest
    assert weights_hash(network, HowConfig(backbone="resnet17_small", dimensions=8)) != digest


def test_a_kind_of_network_that_is_not_known_is_told(tmp_path):
    from dolg_tf.stage import checksums

    save_dolg(how.build_how(SMALL), SMALL, tmp_path / "model", {})
    path = tmp_path / "model" / "config.json"
    values, sums = checksums.read_json(path, 2, "")
    checksums.write_json(path, {**values, "network": "delf"}, sums)
    with pytest.raises(InputError, match=r"network is 'delf'; this release knows dolg, how"):
        load_network(tmp_path / "model")


def test_what_only_dolg_does_refuses_it(tmp_path):
    from dolg_tf.training.start import adopt_network

    path = tmp_path / "model"
    save_dolg(how.build_how(SMALL), SMALL, path, {})
    with pytest.raises(InputError, match="is a HOW network; give a DOLG network"):
        adopt_network(DolgConfig(), str(path))
