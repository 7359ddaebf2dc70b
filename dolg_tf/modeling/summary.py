"""Summary of a network on disk: its parts, size, arithmetic and provenance."""

import dataclasses
import math
import re
from collections import Counter

from dolg_tf.modeling.config import DolgConfig, HowConfig, NetworkConfig
from dolg_tf.modeling.files.config_file import find_network
from dolg_tf.stage import command
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import at_least

# The part of the network that each layer of `build_dolg` belongs to.
_PARTS = {
    "image": "preprocessing",
    "normalization": "preprocessing",
    "backbone": "backbone",
    "p3": "backbone",
    "p4": "backbone",
    "p5": "backbone",
    "multi_atrous": "multi-atrous",
    "multi_atrous_p5": "multi-atrous",
    "local": "local features",
    "local_p5": "local features",
    "gem": "global branch",
    "average": "global branch",
    "global_conv": "global branch",
    "global_norm": "global branch",
    "global_silu": "global branch",
    "global": "global branch",
    "fusion": "fusion",
    "fusion_p5": "fusion",
    "fused": "fusion",
    "delg": "DELG's branch",
    "attention": "local features",
    "smoothed": "local features",
    "reduced": "local features",
    "beside": "descriptor",
    "neck_linear": "descriptor",
    "neck_norm": "descriptor",
    "descriptor": "descriptor",
}
_BRANCHES = {
    "p3": "local branch from the stride-8 map",
    "p4": "local branch",
    "p5": "local branch from the stride-32 map",
    "p4+p5": "two local branches, from the stride-16 and the stride-32 map",
}
_FUSIONS = {
    "orthogonal": "orthogonal fusion, its components",
    "concat": "concatenation with the local features",
    "hadamard": "fusion by products of local and global features, these",
}
# Operations that move numbers, or take a few steps per number: batch norm, activations, pooling.
_ELEMENTWISE = """
    AddV2 AvgPool BiasAdd BroadcastTo ConcatV2 Const Identity IdentityN MaxPool Maximum Mean Mul
    Neg NoOp Pad Placeholder Pow ReadVariableOp RealDiv Relu Relu6 Reshape ReverseV2 Rsqrt Sigmoid
    Softplus Sqrt Square Squeeze StopGradient StridedSlice Sub Sum
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryConfig(NetworkConfig):
    """Which network to summarise, and at which image size."""

    image_size: int = configs.option(
        "side of the square photo that the arithmetic is counted for", 512, unit="pixels"
    )

    def __post_init__(self):
        at_least(self, image_size=32)


def print_summary(config: SummaryConfig) -> None:
    """Prints a network's parts, parameters, arithmetic, preprocessing and provenance."""
    find_network(config.model_dir, config.checkpoint, config.weights)

    from dolg_tf.modeling.model_dir import load_network

    loaded = load_network(config.model_dir, config.checkpoint, config.weights)
    command.show(as_text(summarize(*loaded, config.image_size)))


def summarize(network, config: DolgConfig | HowConfig, provenance: dict, image_size: int) -> dict:
    """Returns the summary of a network, as plain JSON values.

    Args:
      network: of this configuration, in float32.
      config: its configuration.
      provenance: where its weights come from.
      image_size: side of the square photo that the arithmetic is counted for, in pixels.

    Returns:
      `network`, a line of words per part; `image_size`; `descriptor_size`; `preprocessing`;
      `parts`, with the number of `parameters`, of `trainable` ones, and of `multiply_adds` per
      photo, for each part and for "all"; `not_counted`, the operations by kind that are missing
      in these although they may cost as much; `weights_sha256`; `provenance`.
    """
    from dolg_tf.modeling.model_dir import weights_hash

    multiply_adds, not_counted = count_multiply_adds(network, image_size)
    columns = ("parameters", "trainable", "multiply_adds")
    parts = {name: dict.fromkeys(columns, 0) for name in (*_PARTS.values(), "all")}
    for layer in network.layers:
        part = parts[_PARTS[layer.name]]
        part["parameters"] += layer.count_params()
        part["trainable"] += sum(math.prod(v.shape) for v in layer.trainable_variables)
    for name, number in multiply_adds.items():
        parts[name]["multiply_adds"] = number
    parts["all"] = {key: sum(part[key] for part in parts.values()) for key in columns}
    return {
        "network": describe(network, config),
        "image_size": image_size,
        "descriptor_size": network.output_shape[-1],
        "preprocessing": configs.to_dict(config.preprocessing),
        "parts": {name: part for name, part in parts.items() if any(part.values())},
        "not_counted": dict(not_counted),
        "weights_sha256": weights_hash(network, config),
        "provenance": provenance,
    }


def describe(network, config: DolgConfig | HowConfig) -> list[str]:
    """Describes the network in words, one line per part."""
    if isinstance(config, HowConfig):
        return _describe_how(network, config)
    from dolg_tf.modeling.delg import FEATURE_SIZE

    _, p4, p5 = (shape[-1] for shape in network.get_layer("backbone").output_shape)
    pooled = "global branch: average pooling"
    if config.global_pooling != "average":
        p = float(network.get_layer("gem").p.numpy()[0])
        kind = "trained" if config.global_pooling == "learned" else "fixed"
        pooled = f"global branch: GeM with p {p:.3g} ({kind})"
    if config.global_layer == "conv":
        pooled += ", after 1x1 convolution, batch norm and SiLU"
    elif config.fusion != "global_only":
        pooled += ", then a linear layer"
    words = [f"backbone {config.backbone} (stride 16: {p4} channels, stride 32: {p5})"]
    if config.fusion == "global_only":
        words += ["no local branch (DELG's global descriptor)", pooled]
    else:
        local = ["attention" if config.self_attention else "no attention"]
        if config.multi_atrous:
            context = "" if config.multi_atrous_context else ", without context"
            local.insert(0, f"multi-atrous {', '.join(map(str, config.dilations))}{context}")
        words += [
            f"{_BRANCHES[config.local_source]}: {'; '.join(local)}",
            pooled,
            f"{_FUSIONS[config.fusion]}, pooled by {_fused_pooling(network, config)}",
        ]
    neck = {"linear": "a linear layer", "bn_prelu": "a linear layer, batch norm and PReLU"}
    last = neck[config.neck] if config.descriptor_size else "no last layer"
    words.append(f"descriptor of {network.output_shape[-1]} numbers: {last}")
    if config.delg_local:
        words.append(f"beside it, DELG's local branch: {FEATURE_SIZE} numbers a feature")
    return words


def _describe_how(network, config: HowConfig) -> list[str]:
    from dolg_tf.modeling.how import STRIDES

    channels = network.get_layer(config.local_source).output.shape[-1]
    return [
        f"HOW, backbone {config.backbone} up to stride {STRIDES[config.local_source]} "
        f"({channels} channels)",
        f"local features of {config.dimensions} numbers: 3x3 mean, then a whitening",
        "attention: the L2 norm of the map",
        "descriptor: the sum of the local features times their attention",
    ]


def _fused_pooling(network, config: DolgConfig) -> str:
    if config.fused_pooling == "average":
        return "average"
    exponents = [
        f"{float(layer.pool.p.numpy()[0]):.3g}"
        for layer in network.layers
        if layer.name.startswith("fusion")
    ]
    kind = "trained" if config.fused_pooling == "learned" else "fixed"
    return f"GeM with p {' and '.join(exponents)} ({kind})"


def count_multiply_adds(network, image_size: int) -> tuple[Counter, Counter]:
    """Returns the multiply-adds per photo by part, and the number of unknown operations by kind.

    Counted are convolutions and matrix products of the traced graph, including products with the
    zeros of padding. Batch norm, activations and pooling are not: they take a few steps per number.
    """
    import tensorflow as tf

    photo = tf.TensorSpec((1, image_size, image_size, 3), tf.float32)
    forward = tf.function(lambda x: network(x, training=False), autograph=False)
    traced = forward.get_concrete_function(photo)
    names = {layer.name for layer in network.layers}
    elementwise = _ELEMENTWISE.split()
    counted, unknown = Counter(), Counter()
    for op in traced.graph.get_operations():
        if op.type in _PRODUCTS:
            counted[_PARTS[_layer(op.name, names)]] += _PRODUCTS[op.type](op)
        elif op.type not in elementwise:
            unknown[op.type] += 1
    return counted, unknown


def _layer(scope: str, names: set[str]) -> str:
    """Returns the layer that an operation `dolg_1/backbone_1/...` was traced in."""
    plain = (re.sub(r"_\d+$", "", name) for name in scope.split("/"))
    return next(name for name in plain if name in names)


def _convolution(op) -> int:
    height, width, channels, _ = op.inputs[1].shape  # channels: of one group
    return op.outputs[0].shape.num_elements() * height * width * channels


def _depthwise(op) -> int:
    height, width, *_ = op.inputs[1].shape
    return op.outputs[0].shape.num_elements() * height * width


def _matrix_product(op) -> int:
    inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
    return op.outputs[0].shape.num_elements() * inner


_PRODUCTS = {
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matrix_product,
}


def as_text(summary: dict) -> str:
    """Returns the result of `summarize` as text to read."""
    size, preprocessing = summary["image_size"], summary["preprocessing"]
    lines = [
        *summary["network"],
        "",
        f"{'part':15}{'parameters':>14}{'trainable':>14}{'GMAC':>10}{'GFLOP':>10}",
    ]
    for name, part in summary["parts"].items():
        giga = part["multiply_adds"] / 1e9
        lines.append(
            f"{name:15}{part['parameters']:14,}{part['trainable']:14,}{giga:10.3f}{2 * giga:10.3f}"
        )
    lines += [
        f"GMAC: 10^9 multiply-adds of convolutions and matrix products per photo of {size}x{size}",
        "pixels, including products with the zeros of padding; without batch norm, activations and",
        "pooling. GFLOP: twice that.",
    ]
    for kind, number in summary["not_counted"].items():
        lines.append(f"NOT COUNTED, though it may cost as much: {number} x {kind}")
    lines += ["", "preprocessing of float32 RGB in [0, 1]: (x[channel_order] - mean) / std"]
    lines += [f"  {key}: {_plain(value)}" for key, value in preprocessing.items()]
    lines += ["", f"weights_sha256: {summary['weights_sha256']}", "provenance"]
    lines += [f"  {key}: {_plain(value)}" for key, value in summary["provenance"].items()]
    return "\n".join(lines)


def _plain(value) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text.isprintable() else repr(text)  # a provenance may come from anyone
