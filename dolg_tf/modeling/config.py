"""Configuration of the network, of its class head, and of which network on disk to read.

No TensorFlow here, as in `dolg_tf.stage.config`.
"""

import dataclasses

from dolg_tf.modeling.backbones import BACKBONES, find_backbone
from dolg_tf.stage.config import InputError, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of float32 RGB in [0, 1], before the first convolution.

    `(x[channel_order] - mean) / std`, with mean and std in that channel order.
    """

    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError(f"channel_order is {self.channel_order!r}; it must be rgb or bgr")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} must be 3 numbers, std above 0")


# The authors' network was trained on BGR input.
OFFICIAL_PREPROCESSING = Preprocessing(
    channel_order="bgr", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DolgConfig:
    """The network, without its class head.

    The defaults are the paper's DOLG-R50. All fields but `preprocessing`, which belongs to the
    weights, are flags too: `dolg train --help` explains them.

    Raises:
      InputError: if a value is out of its range or contradicts another.

    Example:
      ```python
      config = dolg_tf.DolgConfig(backbone="efficientnet_b0", dilations=(3, 6, 9))
      baseline = dataclasses.replace(config, fusion="global_only")  # DELG's global descriptor
      ```
    """

    backbone: str = option(
        f"convolutional network that gives the maps: {', '.join(BACKBONES)}", "resnet50"
    )
    stride32: str = option(
        "which map of an EfficientNet is the stride-32 map: last_block, or top_conv, the 1x1 "
        "convolution after it",
        "last_block",
        choices=("last_block", "top_conv"),
    )
    fusion: str = option(
        "what is pooled from the local features, next to the global one. orthogonal: their part "
        "orthogonal to it (DOLG); concat: the features themselves; hadamard: their product with "
        "it; global_only: no local branch (DELG's global descriptor)",
        "orthogonal",
        choices=("orthogonal", "concat", "hadamard", "global_only"),
    )
    local_source: str = option(
        "map that the local features come from. p3: stride 8; p4: stride 16 (the paper's f3); "
        "p5: stride 32 (its f4); p4+p5: a local branch and a fusion for each",
        "p4",
        choices=("p3", "p4", "p5", "p4+p5"),
    )
    local_channels: int = option(
        "channels of the local and the global feature; 0: as many as the stride-16 map has", 0
    )
    global_layer: str = option(
        "layer of the global branch. fc: GeM, then a linear layer; conv: 1x1 convolution, batch "
        "norm and SiLU, then GeM",
        "fc",
        choices=("fc", "conv"),
    )
    global_pooling: str = option(
        "pooling of the global branch. gem: GeM with the exponent --gem_p; learned: GeM with a "
        "trained exponent, as in the authors' code; average: the mean",
        "gem",
        choices=("gem", "learned", "average"),
    )
    gem_p: float = option(
        "exponent of the global branch's GeM pooling; initial value if it is trained", 3.0
    )
    multi_atrous: bool = option("multi-atrous convolutions at the start of the local branch", True)
    dilations: tuple[int, ...] = option(
        "dilations of the 3x3 multi-atrous convolutions", (6, 12, 18), unit="cells of the map"
    )
    multi_atrous_context: bool = option(
        "add a pooled and a 1x1 branch to the dilated ones of the multi-atrous module", True
    )
    self_attention: bool = option("attention over the local features", True)
    fused_pooling: str = option(
        "pooling of the fused local features. average: the mean; gem: GeM with exponent 3; "
        "learned: GeM with a trained exponent, initially 3",
        "average",
        choices=("average", "gem", "learned"),
    )
    descriptor_size: int = option(
        "length of the descriptor; 0: no last layer, so all numbers of the features before it", 512
    )
    neck: str = option(
        "last layer. linear: a linear layer; bn_prelu: followed by batch norm and PReLU",
        "linear",
        choices=("linear", "bn_prelu"),
    )
    delg_local: bool = option(
        "train DELG's local branch beside the descriptor: on the stride-16 map, attention and an "
        "autoencoder to 128 numbers, which do not change the descriptor",
        False,
    )
    preprocessing: Preprocessing = Preprocessing()

    def __post_init__(self):
        find_backbone(self.backbone)
        at_least(self, descriptor_size=0, local_channels=0)
        if self.gem_p <= 0:
            raise InputError(f"--gem_p={self.gem_p} must be above 0")
        if self.neck != "linear" and not self.descriptor_size:
            raise InputError(
                f"--neck={self.neck}: --descriptor_size=0 has no last layer; omit one of the two "
                "flags"
            )
        if self.fusion == "global_only" and self.local_source != "p4":
            raise InputError(
                f"--local_source={self.local_source}: --fusion=global_only has no local features; "
                "omit one of the two flags"
            )
        if self.multi_atrous and (not self.dilations or min(self.dilations) < 1):
            raise InputError(
                f"--dilations={self.dilations} must be one or more numbers, each at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HowConfig:
    """HOW's network, which gives local features for ASMK.

    The defaults are the authors' ResNet-50 without its last stack; their ResNet-18 is
    `HowConfig(backbone="resnet18", local_source="p5")`. All fields but `preprocessing`, which
    belongs to the weights, are flags of its training too.

    Raises:
      InputError: if a value is out of its range.
    """

    backbone: str = option(
        f"convolutional network that gives the map: {', '.join(BACKBONES)}", "resnet50"
    )
    local_source: str = option(
        "map that the local features come from; what follows it is cut off. p4: stride 16 (the "
        "authors' ResNet-50); p5: stride 32 (their ResNet-18)",
        "p4",
        choices=("p4", "p5"),
    )
    dimensions: int = option("numbers of a local feature, after the whitening", 128)
    preprocessing: Preprocessing = Preprocessing()

    def __post_init__(self):
        find_backbone(self.backbone)
        at_least(self, dimensions=1)


# By the name in config.json.
NETWORKS = {"dolg": DolgConfig, "how": HowConfig}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which weights to read from a run directory."""

    checkpoint: str = option(
        "which checkpoint of a run directory to read", "latest", choices=("latest", "best")
    )
    weights: str = option(
        "which weights to read. raw: as trained; ema: their moving average, of a run with "
        "--ema_decay",
        "raw",
        choices=("raw", "ema"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(CheckpointConfig):
    """Which network on disk to read."""

    model_dir: str = option("run directory or model directory")


@dataclasses.dataclass(frozen=True)
class Head:
    """A class head with its margin loss.

    Args:
      words: description for `--help`.
      unit: of its margin.
      options: options of `HeadConfig` that it takes besides margin and scale.
    """

    words: str
    unit: str = "radians"
    options: tuple[str, ...] = ("margin_range",)


# By the name of --loss. The classes, with the papers, are in `dolg_tf.modeling.heads`.
HEADS = {
    "arcface": Head("a margin on the angle"),
    "curricularface": Head("ArcFace with increasing weight on hard negatives", options=()),
    "cosface": Head("a margin on the cosine", unit="difference of cosines"),
    "subcenter_arcface": Head(
        "ArcFace with several centres per landmark, of which the nearest counts",
        options=("margin_range", "sub_centers"),
    ),
}


def heads_with(option_name: str) -> str:
    """Returns the names of the heads that take an option of `HeadConfig`."""
    return ", ".join(name for name, head in HEADS.items() if option_name in head.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The class head that the network is trained with, and its margin loss."""

    loss: str = option(
        "margin loss. " + "; ".join(f"{name}: {head.words}" for name, head in HEADS.items()),
        "arcface",
        choices=tuple(HEADS),
    )
    margin: float = option(
        "margin of the loss",
        0.15,
        unit="; ".join(f"{name}: {head.unit}" for name, head in HEADS.items()),
    )
    margin_range: float = option(
        "how much larger the margin of the rarest landmark is than that of the commonest; 0: all "
        f"equal. For {heads_with('margin_range')}",
        0.0,
    )
    scale: float = option("scale of the cosine logits", 30.0)
    sub_centers: int = option(f"centres per landmark, for {heads_with('sub_centers')}", 3)

    def __post_init__(self):
        at_least(self, sub_centers=1, margin_range=0)
        if self.scale <= 0:
            raise InputError(f"--scale={self.scale} must be above 0")
