"""Each backbone and each loss: its flag, its line in the docs, and that it builds and runs."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dolg_tf.modeling.backbones import BACKBONES, build_backbone
from dolg_tf.modeling.config import HEADS, DolgConfig, HeadConfig
from dolg_tf.modeling.heads import CLASSES, build_head

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "training.md"
# Built in seconds; of these families the others differ in width and depth alone.
SMALL = {"resnet18", "resnet17_small", "efficientnet_b0", "efficientnet_lite0"}
# Residual blocks, by the papers' tables.
BLOCKS = {
    "resnet18": 8,
    "resnet34": 16,
    "resnet50": 16,
    "resnet101": 33,
    "resnet152": 50,
    "resnet17_small": 5,
    "efficientnet_b0": 16,
    "efficientnet_b1": 23,
    "efficientnet_b2": 23,
    "efficientnet_b3": 26,
    "efficientnet_b4": 32,
    "efficientnet_b5": 39,
    "efficientnet_b6": 45,
    "efficientnet_b7": 55,
    "efficientnet_lite0": 16,
    "efficientnet_lite1": 21,
    "efficientnet_lite2": 21,
    "efficientnet_lite3": 24,
    "efficientnet_lite4": 30,
}


def _field(cls, name):
    return cls.__dataclass_fields__[name].metadata


def _documented(flag: str) -> set[str]:
    """The names in the first column of a flag's table in the docs."""
    _, table = DOCS.read_text().split(f"| `{flag}` | |\n| --- | --- |\n")
    rows = table.split("\n\n")[0].splitlines()
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_choice_is_in_the_help_and_in_the_docs():
    assert re.findall(r"\w+", _field(DolgConfig, "backbone")["help"].split(":")[1]) == [*BACKBONES]
    assert _documented("--backbone") == set(BACKBONES)
    loss = _field(HeadConfig, "loss")
    assert loss["choices"] == (*HEADS,) == (*CLASSES,)
    assert all(f"{name}: {head.words}" in loss["help"] for name, head in HEADS.items())
    assert _documented("--loss") == set(HEADS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SMALL else pytest.mark.slow) for name in BACKBONES],
)
def test_a_backbone_gives_its_maps_and_says_where_its_blocks_are(name):
    backbone = build_backbone(name)
    for height, width in ((97, 130), (32, 33)):
        maps = backbone(np.zeros((1, height, width, 3), np.float32))
        for stride, output in zip((8, 16, 32), maps, strict=True):
            assert output.shape[1:3] == (-(-height // stride), -(-width // stride))
    block_of = {layer.name: BACKBONES[name].block(layer.name) for layer in backbone.layers}
    assert len(set(block_of.values()) - {""}) == BLOCKS[name]
    assert not any("block" in layer for layer, block in block_of.items() if not block)


@pytest.mark.parametrize("loss", HEADS)
def test_a_loss_puts_its_margin_on_the_target(loss):
    head = build_head(HeadConfig(loss=loss, margin=0.2, scale=10.0), 5)
    cosines = np.asarray(head(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)))
    labels = np.array([0, 4, 2])
    moved = 10 * cosines - np.asarray(head.logits(cosines, labels))
    assert np.all(moved[range(3), labels] > 0.1)
    for option in HEADS[loss].options:
        assert loss in _field(HeadConfig, option)["help"]


def test_a_mistyped_backbone_is_answered_before_tensorflow_with_the_nearest():
    code = """
import sys
from dolg_tf.modeling.config import DolgConfig
try:
    DolgConfig(backbone="resnet51")
finally:
    print({"keras", "tensorflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
    last = done.stderr.strip().splitlines()[-1]
    assert "--backbone=resnet51 is unknown (did you mean resnet50?); choose one of resnet18" in last
