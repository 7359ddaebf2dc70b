"""The network for inference alone: fewer products, fewer passes.

An exported model drops what only training needs: separate batch norms, products with the zero
padding of dilated convolutions, and a map of local features where only its mean is used. Weights
are combined in float64, so that descriptors differ by float32 rounding alone.

They are variables. TensorFlow's loaders hold a constant some ten times over: in the graph as it was
read, in each step of its optimisation, and in the kernel. A variable is read from the file into its
place, and all signatures share it.
"""

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

# `tf.Variable` refuses to be made while a `tf.function` is traced, unless that is traced twice.
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from dolg_tf.modeling import dolg
from dolg_tf.modeling.layers import fuse
from dolg_tf.modeling.local_features import local_kind

# Bytes. Smaller weights stay constants, which TensorFlow rearranges for the processor once: calls
# of EfficientNet-Lite0 take 3 % more CPU time than with constants alone, and with 64 KB 7 %.
_SMALL = 1 << 18
_COLLECTION = "weights"


class FoldedNetwork:
    """A folded network.

    Its weights are in one graph function, which all graphs that call it share: a SavedModel of
    several signatures stores them once.

    Args:
      network: of `build_dolg` or `build_how`, in any precision. It is not changed, and later
        changes to it have no effect.

    Attributes:
      local_kind: which local features it has.
      name: "dolg" or "how".

    Shapes: float32 RGB in [0, 1], (B, H, W, 3) -> float32 (B, descriptor_size), like the network.
    """

    def __init__(self, network: keras.Model):
        self.output_shape = network.output_shape
        self.local_kind, self.name = local_kind(network), network.name
        # Traced now, before the network can change, and once: a `tf.function` that is asked for its
        # concrete function is traced again when another graph calls it.
        outputs_of = _outputs_of_how if network.name == "how" else _outputs
        self._outputs = tf.function(
            lambda images: outputs_of(network, images),
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "images")],
            autograph=False,
        ).get_concrete_function()

    def __call__(self, images, training=False):
        return self._outputs(images)["descriptor"]

    def intermediates(self, images) -> dict[str, tf.Tensor]:
        """Returns `global`, `local`, `attention` and `descriptor`, see `dolg.intermediates`."""
        outputs = self._outputs(images)
        found = {name: outputs[name] for name in ("global", "attention", "descriptor")}
        return found | {"local": _local(outputs)}

    def local_features(self, images) -> dict[str, tf.Tensor]:
        """Returns `features` and `strength`, see `with_local_features`, and `descriptor`."""
        outputs = self._outputs(images)
        if self.local_kind.name == "how":
            features, strength = outputs["reduced"], outputs["attention"]
        elif self.local_kind.name == "delg":
            features, strength = outputs["delg_features"], outputs["delg_attention"]
        elif self.local_kind.name == "dolg":
            features, strength = _local(outputs), outputs["strength"]
        else:
            features, strength = outputs["p4"], _norm(outputs["p4"])
        return {"features": features, "strength": strength, "descriptor": outputs["descriptor"]}


def _local(outputs: dict[str, tf.Tensor]) -> tf.Tensor:
    # Not in the graph of `_outputs`, since the descriptor's does not need it.
    return outputs["weight"] * outputs["features"]


def _outputs(network: keras.Model, images) -> dict[str, tf.Tensor]:
    x = network.get_layer("normalization")(images)
    maps = dict(zip(dolg.MAPS, _backbone(network.get_layer("backbone"), x), strict=True))
    f_global = _global_branch(network, maps["p5"])
    branches, parts = [], [f_global]
    for source, suffix in dolg.local_branches(network):
        x = maps[source]
        if _has(network, f"multi_atrous{suffix}"):
            x = _multi_atrous(network.get_layer(f"multi_atrous{suffix}"), x)
        branches.append(_local_branch(network.get_layer(f"local{suffix}"), x))
        parts.append(_part(network.get_layer(f"fusion{suffix}"), branches[-1], f_global))
    descriptor = _neck(network, tf.concat(parts, -1))
    others = {"p4": tf.cast(maps["p4"], tf.float32)}
    if _has(network, "delg"):
        others |= _delg(network.get_layer("delg"), maps["p4"])
    # With two local branches, those of the finer one, like `dolg.intermediates`.
    branch = branches[0] if branches else {}
    return {"descriptor": descriptor, "global": f_global, **branch, **others}


def _outputs_of_how(network: keras.Model, images) -> dict[str, tf.Tensor]:
    x = network.get_layer("normalization")(images)
    (found,) = _backbone(network.get_layer("backbone"), x)
    features = tf.cast(found, tf.float32)
    attention = network.get_layer("attention")(features)
    reduced = _convolve(
        network.get_layer("smoothed")(features), *_weights(network.get_layer("reduced"))
    )
    descriptor = network.get_layer("descriptor")([reduced, attention])
    return {"descriptor": descriptor, "reduced": reduced, "attention": attention[..., None]}


def _has(network: keras.Model, name: str) -> bool:
    return any(layer.name == name for layer in network.layers)


# --- layers of weights --------------------------------------------------------------------


def as_tensor(array, dtype: tf.DType | str) -> tf.Tensor | tf.Variable:
    """Returns weights as a tensor for the graph function that is being traced.

    Args:
      array: numbers of any float type.
      dtype: of the tensor.
    """
    values = np.asarray(array, tf.as_dtype(dtype).as_numpy_dtype)
    if values.nbytes < _SMALL:
        return tf.constant(values)
    with tf.init_scope():
        variable = ResourceVariable(values, trainable=False, name="weights")
    tf.compat.v1.add_to_collection(_COLLECTION, variable)  # of the graph: lives as long
    return variable


def owner(functions: Iterable[tf.types.experimental.ConcreteFunction]) -> tf.Module:
    """Returns a module that owns the weights of graph functions, as a SavedModel requires."""
    captured: dict[int, tf.Variable] = {}
    for function in functions:
        handles = {id(tensor) for tensor in function.captured_inputs}
        # A graph also remembers variables that were only read while it was traced.
        captured |= {id(v): v for v in function.variables if id(v.handle) in handles}
    module = tf.Module()
    module.weights = list(captured.values())
    return module


def _array(variable) -> np.ndarray:
    with tf.init_scope():  # values, even while a graph is traced
        return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _scale_and_shift(norm) -> tuple[np.ndarray, np.ndarray]:
    """Returns the batch norm as x * scale + shift."""
    scale = _array(norm.gamma) / np.sqrt(_array(norm.moving_variance) + norm.epsilon)
    return scale, _array(norm.beta) - _array(norm.moving_mean) * scale


def _weights(layer, norm=None) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of a layer and the batch norm that follows it, combined."""
    kernel = _array(layer.kernel)
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)  # kernel (h, w, C, 1)
    bias = _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[2 if depthwise else -1])
    if norm is None:
        return kernel, bias
    scale, shift = _scale_and_shift(norm)
    return kernel * (scale[:, None] if depthwise else scale), bias * scale + shift


def _convolve(x, kernel, bias, stride=1, padding="VALID", dtype="float32"):
    """Convolution and bias, adjacent, as TensorFlow's optimiser expects them."""
    x = tf.nn.conv2d(tf.cast(x, dtype), as_tensor(kernel, dtype), stride, padding)
    return tf.nn.bias_add(x, as_tensor(bias, dtype))


def _dense(x, kernel, bias):
    return tf.nn.bias_add(tf.matmul(x, as_tensor(kernel, x.dtype)), as_tensor(bias, x.dtype))


# --- backbone -----------------------------------------------------------------------------


def _backbone(backbone: keras.Model, images) -> list[tf.Tensor]:
    """Runs the layers of a functional model one by one, with folded weights."""
    values, followers, pads, folded = {id(backbone.input): images}, {}, {}, set()
    for layer in backbone.layers:
        for tensor in tf.nest.flatten(layer.input):
            followers.setdefault(id(tensor), []).append(layer)
    for tensor in backbone.outputs:
        followers.setdefault(id(tensor), []).append(None)

    def only_follower(layer, kind):
        following = followers[id(layer.output)]
        return following[0] if len(following) == 1 and isinstance(following[0], kind) else None

    for layer in backbone.layers:
        inputs = tf.nest.map_structure(lambda tensor: values.get(id(tensor)), layer.input)
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            norm = only_follower(layer, keras.layers.BatchNormalization)
            folded.add(norm)
            outputs = _convolution(layer, norm, inputs, pads.get(id(layer.input)))
        elif isinstance(layer, keras.layers.BatchNormalization):
            outputs = inputs if layer in folded else _batch_norm(layer, inputs)
        elif isinstance(layer, keras.layers.ZeroPadding2D) and only_follower(
            layer, keras.layers.Conv2D
        ):
            outputs, pads[id(layer.output)] = inputs, layer.padding
        elif isinstance(layer, keras.layers.Add):
            # `add_n` requires inputs of one shape, so TensorFlow's optimiser lets the preceding
            # convolution do the addition.
            outputs = tf.add_n(inputs)
        elif layer.weights:
            raise NotImplementedError(f"{layer.name}: cannot fold a {type(layer).__name__}")
        else:
            outputs = layer(inputs)
        values[id(layer.output)] = outputs
    return [values[id(tensor)] for tensor in backbone.outputs]


def _convolution(layer, norm, x, pads):
    kernel, bias = _weights(layer, norm)
    padding, dtype = layer.padding.upper(), layer.compute_dtype
    if pads is not None:
        padding = [(0, 0), *pads, (0, 0)]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        strides = (1, *layer.strides, 1)
        x = tf.nn.depthwise_conv2d(tf.cast(x, dtype), as_tensor(kernel, dtype), strides, padding)
        x = tf.nn.bias_add(x, as_tensor(bias, dtype))
    else:
        x = _convolve(x, kernel, bias, layer.strides, padding, dtype)
    return layer.activation(x)


def _batch_norm(layer, x):
    scale, shift = _scale_and_shift(layer)
    return x * as_tensor(scale, x.dtype) + as_tensor(shift, x.dtype)


# --- branches -----------------------------------------------------------------------------


def _pool(layer, x):
    """`layers.pooling`; the cube, by far the commonest power, by multiplication."""
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return tf.reduce_mean(tf.cast(x, tf.float32), (1, 2))
    p = _array(layer.p)[0]
    x = tf.maximum(tf.cast(x, tf.float32), 1e-6)
    x = x * x * x if p == 3 else tf.pow(x, tf.constant(p, tf.float32))
    return tf.pow(tf.reduce_mean(x, (1, 2)), tf.constant(1 / p, tf.float32))


def _global_branch(network: keras.Model, p5):
    """Returns the global feature (B, C)."""
    pool = network.get_layer("gem" if _has(network, "gem") else "average")
    if _has(network, "global_conv"):
        conv = network.get_layer("global_conv")
        weights = _weights(conv, network.get_layer("global_norm"))
        return _pool(pool, tf.nn.silu(_convolve(p5, *weights, dtype=conv.compute_dtype)))
    pooled, linear = _pool(pool, p5), network.get_layer("global")
    return _dense(pooled, *_weights(linear)) if linear.weights else pooled


def _multi_atrous(block, x):
    """`layers.MultiAtrous`, (B, H, W, C) -> (B, H, W, channels).

    There is no nonlinearity between the branches and the convolution that reduces them. So the 1x1
    branch and the middle taps of the dilated ones become one 1x1 convolution, and the pooled branch
    one vector per photo. Each other tap is a matrix product over the cells that it reaches: a
    corner tap of dilation 18 reaches a fifth of a map of 32 x 32 cells.
    """
    dtype = block.compute_dtype
    x = tf.cast(x, dtype)
    reduction, bias = _weights(block.reduce)
    parts = np.split(reduction[0, 0], len(block.dilations) + 2 * block.context)  # (C/2, channels)
    dilated = parts[-len(block.dilations) :]
    middle = np.zeros((x.shape[-1], bias.size))
    branches, kernels = [x], []
    for conv, part in zip(block.dilated, dilated, strict=True):
        kernel, offset = _weights(conv)
        middle += kernel[1, 1] @ part
        bias = bias + offset @ part
        branches.append(_outer_taps(x, kernel, conv.dilation_rate[0]))
        kernels.append(part)
    if block.context:
        kernel, offset = _weights(block.point)
        middle += kernel[0, 0] @ parts[1]
        bias = bias + offset @ parts[1]
    kernel = np.concatenate([middle, *kernels])[None, None]
    y = _convolve(tf.concat(branches, -1), kernel, bias, dtype=dtype)
    if block.context:
        kernel, offset = _weights(block.pooled)
        pooled = tf.nn.relu(_dense(tf.reduce_mean(x, (1, 2)), kernel[0, 0], offset))
        y += tf.matmul(pooled, as_tensor(parts[0], dtype))[:, None, None]
    return tf.nn.relu(y)


def _outer_taps(x, kernel: np.ndarray, dilation: int):
    """Returns the dilated convolution without its middle tap and bias."""
    shape = tf.shape(x)
    height, width = shape[1], shape[2]

    def reach(side, shift: int):
        """Cells that a tap sees, and the zeros before and after the cells that it writes."""
        out = tf.minimum(abs(shift), side)
        return (slice(out, side), [0, out]) if shift > 0 else (slice(0, side - out), [out, 0])

    rows = []
    for i in range(3):
        seen, zeros = reach(height, (i - 1) * dilation)
        row, sums = x[:, seen], []
        for j in range(3):
            if (i, j) == (1, 1):
                continue
            columns, margins = reach(width, (j - 1) * dilation)
            # Not a 1x1 convolution: oneDNN's has a wrong shape for a tap that reaches no cell.
            product = tf.tensordot(row[:, :, columns], as_tensor(kernel[i, j], x.dtype), 1)
            sums.append(tf.pad(product, [[0, 0], [0, 0], margins, [0, 0]]))
        rows.append(tf.pad(tf.add_n(sums), [[0, 0], zeros, [0, 0], [0, 0]]))
    return tf.add_n(rows)


def _local_branch(layer, x) -> dict[str, tf.Tensor]:
    """`layers.SpatialAttention`, with its local features as two factors.

    Returns:
      float32 `features` (B, H, W, C), `weight`, `attention` and `strength` (B, H, W, 1). The local
      feature is weight x features, where the weight is the attention over the norm of the features;
      the strength is its norm.
    """
    dtype = layer.compute_dtype
    y = _convolve(x, *_weights(layer.conv, layer.norm), dtype=dtype)
    features = tf.cast(y, tf.float32)
    if not layer.use_attention:
        one = tf.ones_like(features[..., :1])
        strength = _norm(features)
        return {"features": features, "weight": one, "attention": one, "strength": strength}
    score = _convolve(tf.nn.relu(y), *_weights(layer.score), dtype=dtype)
    attention = tf.nn.softplus(tf.cast(score, tf.float32))
    square = tf.reduce_sum(tf.square(features), -1, keepdims=True)
    weight = attention * tf.math.rsqrt(tf.maximum(square, 1e-24))
    parts = {"features": features, "weight": weight}
    return parts | {"attention": attention, "strength": attention}


def _delg(layer, x) -> dict[str, tf.Tensor]:
    """`delg.DelgLocal` without what only its training needs: float32 (B, H, W, 128 and 1)."""
    dtype = layer.compute_dtype
    features = _convolve(x, *_weights(layer.encode), dtype=dtype)
    hidden = tf.nn.relu(_convolve(x, *_weights(layer.conv, layer.norm), dtype=dtype))
    score = _convolve(hidden, *_weights(layer.score), dtype=dtype)
    return {
        "delg_features": tf.cast(features, tf.float32),
        "delg_attention": tf.nn.softplus(tf.cast(score, tf.float32)),
    }


def _norm(features):
    return tf.norm(features, axis=-1, keepdims=True)


def _part(layer, local: dict[str, tf.Tensor], f_global):
    """`layers.Fusion`: (B, C)."""
    features, weight = local["features"], local["weight"]
    if layer.pooling != "average":
        return _pool(layer.pool, fuse(layer.method, weight * features, f_global))
    shape = tf.shape(features)
    cells = shape[1] * shape[2]
    features = tf.reshape(features, [shape[0], cells, features.shape[-1]])
    weight = tf.reshape(weight, [shape[0], 1, cells]) / tf.cast(cells, tf.float32)
    return fuse(layer.method, tf.matmul(weight, features)[:, 0], f_global)


def _neck(network: keras.Model, fused):
    last = network.get_layer("descriptor")
    if isinstance(last, keras.layers.Identity):
        return fused
    if not _has(network, "neck_norm"):
        return _dense(fused, *_weights(last))
    weights = _weights(network.get_layer("neck_linear"), network.get_layer("neck_norm"))
    x = _dense(fused, *weights)
    return tf.nn.relu(x) - tf.constant(_array(last.alpha), tf.float32) * tf.nn.relu(-x)
