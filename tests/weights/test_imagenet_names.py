"""State dicts of PyTorch code bases: against their own maps, and refused in words when odd."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.stage.config import InputError
from dolg_tf.weights import imagenet, imagenet_names
from dolg_tf.weights.assign import fill
from dolg_tf.weights.files.tensors import Tensor, TensorFile, write_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
R18 = DolgConfig(backbone="resnet18", fusion="global_only", descriptor_size=8)


def _tensors(arrays):
    return {
        name: Tensor(array.shape, array.dtype.name, lambda array=array: array)
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def network():
    return build_dolg(R18, seed=0)


@pytest.fixture(scope="module")
def resnet18(standin):
    """A torchvision ResNet-18's state dict, as `make_imagenet.py` of the golden files has it."""
    shapes = json.loads((GOLDEN / "torchvision_resnet18.json").read_text())
    arrays = {}
    for name, shape in shapes.items():
        norm = len(shape) == 1 and name.endswith(".weight")
        arrays[name] = standin.value(f"{name}/bn.weight" if norm else name, shape)
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.zeros((), np.int64)
    return arrays


def _relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def _maps(network, image):
    backbone, normalization = network.get_layer("backbone"), network.get_layer("normalization")
    return [np.asarray(x)[0] for x in backbone(normalization(image), training=False)][1:]


def test_maps_of_a_resnet18_equal_torchvisions(network, resnet18, standin, tmp_path, caplog):
    path = tmp_path / "resnet18.pth"
    write_tensors(path, {f"module.{name}": array for name, array in resnet18.items()})
    with caplog.at_level("INFO"):
        imagenet.load_backbone(network, str(path))
    assert "100 tensors used" in caplog.text and "20 ignored: a counter" in caplog.text
    assert ", sha256 " in caplog.text
    expected = np.load(GOLDEN / "torchvision_resnet18.npz")
    for height, width in ((97, 130), (224, 288)):
        maps = _maps(network, standin.image(height, width).astype(np.float32)[None] / 255)
        for name, step, ours in zip(("layer3", "layer4"), (32, 64), maps, strict=True):
            error = _relative_error(ours[:, :, ::step], expected[f"{height}x{width}/{name}"])
            assert error < 1e-5, f"{name} at {height}x{width} is {error:.1e} off"


@pytest.mark.slow
def test_maps_of_a_pycls_resnet50_equal_the_authors_for_rgb_too(standin, tmp_path, monkeypatch):
    """The authors' DOLG has their ImageNet network inside, and reads BGR."""
    shapes = json.loads((GOLDEN / "r50.json").read_text())
    arrays = {"head.fc.weight": np.zeros((10, 2048), np.float32)}
    for name, shape in shapes.items():
        if name.startswith("globalmodel."):
            arrays[name.removeprefix("globalmodel.")] = standin.value(name, shape)
    path = tmp_path / "R-50.pyth"
    path.touch()
    file = TensorFile("PyTorch (zip)", _tensors(arrays), ())
    monkeypatch.setattr(imagenet, "open_tensors", lambda _: file)
    config = DolgConfig(fusion="global_only", descriptor_size=8)
    assert imagenet.preprocessing(str(path), config) == config.preprocessing
    network = build_dolg(config)
    imagenet.load_backbone(network, str(path))
    expected = np.load(GOLDEN / "r50.npz")
    maps = _maps(network, standin.image(97, 130).astype(np.float32)[None] / 255)
    for name, ours in zip(("f3", "f4"), maps, strict=True):
        error = _relative_error(ours[:, :, ::64], expected[f"97x130/{name}"])
        assert error < 1e-5, f"{name} is {error:.1e} off"


def test_a_network_for_bgr_gets_rgb_weights_turned_around(resnet18, tmp_path, monkeypatch, caplog):
    network = build_dolg(dataclasses.replace(R18, preprocessing=OFFICIAL_PREPROCESSING))
    path = tmp_path / "resnet18.pth"
    path.touch()
    file = TensorFile("PyTorch (zip)", _tensors(resnet18), ())
    monkeypatch.setattr(imagenet, "open_tensors", lambda _: file)
    with caplog.at_level("INFO"):
        imagenet.load_backbone(network, str(path))
    kernel = np.asarray(network.get_layer("backbone").get_layer("conv1_conv").kernel)
    np.testing.assert_array_equal(
        kernel, resnet18["conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    )
    assert "input channels of the first kernel reversed" in caplog.text


def test_another_preprocessing_is_refused(network, resnet18, tmp_path, monkeypatch):
    path = tmp_path / "resnet18.pth"
    path.touch()
    file = TensorFile("PyTorch (zip)", _tensors(resnet18), ())
    monkeypatch.setattr(imagenet, "open_tensors", lambda _: file)
    monkeypatch.setattr(network.get_layer("normalization"), "mean", (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"resnet18.pth needs mean \(0.485, .*has \(0.5, 0.5"):
        imagenet.load_backbone(network, str(path))


def _changed(arrays, **changes):
    """Returns the arrays with some replaced, added, or (None) taken out; `__` stands for a dot."""
    changes = {name.replace("__", "."): array for name, array in changes.items()}
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


def _odd(arrays):
    """Yields (what, arrays, message)."""
    stem, last = arrays["conv1.weight"], "layer4.1.bn2.running_var"
    infinite = arrays[last].copy()
    infinite[3] = np.inf
    yield (
        "missing",
        _changed(arrays, layer3__0__downsample__0__weight=None),
        "has no layer3.0.downsample.0.weight, which stack2_block0_0_conv/kernel needs$",
    )
    yield (
        "resnet18d",
        _changed(arrays, conv1__weight=None, conv1__0__weight=stem),
        "has no conv1.weight, which conv1_conv/kernel needs; its conv1.0.weight fits nothing",
    )
    squeeze = np.zeros((4, 64, 1, 1), np.float32)
    yield (
        "squeeze and excitation",
        _changed(arrays, layer1__0__se__fc1__weight=squeeze),
        "^its layer1.0.se.fc1.weight fits nothing in this network",
    )
    yield (
        "wide",
        _changed(arrays, layer1__0__conv1__weight=np.zeros((128, 64, 3, 3), np.float32)),
        r"its layer1.0.conv1.weight has shape \(128, 64, 3, 3\), .* \(64, 64, 3, 3\)",
    )
    yield (
        "infinite",
        _changed(arrays, **{last: infinite}),
        f"1 of 512 values of its {last} are NaN or infinite",
    )
    yield (
        "whole numbers",
        _changed(arrays, **{last: infinite.clip(0, 1).astype(np.int32)}),
        f"its {last} holds int32; weights are floating-point numbers",
    )


def test_an_odd_file_is_refused_by_name_and_nothing_is_filled(network, resnet18):
    backbone, naming = network.get_layer("backbone"), imagenet_names.TORCHVISION
    entries = naming.entries(backbone)
    for variable in backbone.variables:
        variable.assign(keras.ops.zeros_like(variable))
    for what, arrays, message in _odd(resnet18):
        with pytest.raises(InputError, match=message):
            fill(entries, _tensors(arrays), naming.ignored_because)
        assert not any(np.any(np.asarray(v)) for v in backbone.variables), what
    ignored = fill(entries, _tensors(resnet18), naming.ignored_because)
    assert ignored["fc.weight"] == "the classifier of ImageNet's classes"
    assert ignored["bn1.num_batches_tracked"] == "a counter of training steps"


def test_half_precision_is_read_exactly(network, resnet18):
    naming = imagenet_names.TORCHVISION
    half = {name: array.astype(np.float16) for name, array in resnet18.items()}
    fill(naming.entries(network.get_layer("backbone")), _tensors(half), naming.ignored_because)
    kernel = network.get_layer("backbone").get_layer("conv1_conv").kernel
    np.testing.assert_array_equal(kernel, half["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["globalmodel.stem.conv.weight", "s1.b1.f.b.weight"], "`dolg convert`.*init_from"),
        (["conv_stem.weight"], "EfficientNet of timm.*efficientnet_lite0"),
        (
            ["model.conv1.weight"],
            "model.conv1.weight, for instance, is unknown; first remove the prefix",
        ),
        (["features.0.weight"], "neither a ResNet .*; features.0.weight, for instance, is unknown"),
        ([], "neither a ResNet of torchvision, timm or pycls nor an efficientnet_pytorch$"),
    ],
    ids=["dolg", "timm", "prefix", "vgg", "empty"],
)
def test_names_that_are_not_known_are_refused_with_the_remedy(names, message):
    with pytest.raises(InputError, match=message):
        imagenet_names.find_naming(names)


def test_weights_of_another_kind_of_network_are_refused(network):
    image = keras.Input((None, None, 3))
    stem = keras.layers.Conv2D(4, 3, name="stem_conv")(image)
    depthwise = keras.layers.DepthwiseConv2D(3, name="block1a_dwconv")(stem)
    padded_on_both_sides = keras.Model(image, depthwise)
    with pytest.raises(InputError, match="this is a ResNet, but --backbone is not"):
        imagenet_names.PYCLS.entries(padded_on_both_sides)
    with pytest.raises(InputError, match="trained with TensorFlow's 'same' padding"):
        imagenet_names.EFFICIENTNET_PYTORCH.entries(padded_on_both_sides)
    with pytest.raises(InputError, match="this is an EfficientNet, but --backbone is not"):
        imagenet_names.EFFICIENTNET_PYTORCH.entries(network.get_layer("backbone"))


def test_weights_h5_of_our_backbone_are_taken_whole(network, tmp_path):
    path = tmp_path / "backbone.weights.h5"
    network.get_layer("backbone").save_weights(path)
    backbone = network.get_layer("backbone")
    before = [variable.numpy() for variable in backbone.weights]
    for variable in backbone.weights:
        variable.assign(keras.ops.zeros_like(variable))
    imagenet.load_backbone(network, str(path))
    for variable, was in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(variable, was)


def test_what_is_left_out_is_logged_with_its_reason(network, resnet18, tmp_path, caplog):
    path = tmp_path / "resnet18.safetensors"
    save_file(dict(resnet18), path, metadata={"ema": "elsewhere"})
    with caplog.at_level("INFO"):
        imagenet.load_backbone(network, str(path))
    assert "not read: __metadata__" in caplog.text
    assert "2 ignored: the classifier of ImageNet's classes" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv1.weight", 1e300, "NaN or infinite"),
        ("bn1.running_var", -1.0, r"its bn1\.running_var holds a negative variance"),
    ],
)
def test_values_that_no_float32_network_can_have_are_refused(
    network, resnet18, name, value, message
):
    state = dict(resnet18)
    state[name] = np.full(state[name].shape, value, np.float64)
    with pytest.raises(InputError, match=message):
        naming = imagenet_names.TORCHVISION
        fill(naming.entries(network.get_layer("backbone")), state, naming.ignored_because)
