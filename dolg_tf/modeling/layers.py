"""The layers that turn a backbone's maps into a DOLG descriptor.

They are written with `keras.ops` and run on any Keras backend. Pooling, norms and the projection
compute in float32, whatever the precision of the convolutions.

Reference: Yang et al., DOLG, ICCV 2021, https://arxiv.org/abs/2108.02927, section 3.
"""

import keras
from keras import ops

from dolg_tf.modeling.batch_norm import BatchNormalization
from dolg_tf.modeling.dilated_conv import DilatedConv2D


def l2_normalize(x, axis=-1):
    """Returns x with unit L2 norm along `axis`; a zero vector stays zero, its gradient finite."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, 1e-24))


def projection_coefficient(local, f_global):
    """Returns <local, f_global> / |f_global|^2, the share of f_global that `local` contains.

    Args:
      local: (B, C) or (B, H, W, C).
      f_global: (B, C).

    Returns:
      (B, 1) or (B, H, W, 1).

    Reference: DOLG, equation 2.
    """
    if len(local.shape) == 4:
        f_global = f_global[:, None, None, :]
    square = ops.sum(ops.square(f_global), axis=-1, keepdims=True)
    # With a zero global feature the coefficient is 0, not 0/0.
    return ops.sum(local * f_global, axis=-1, keepdims=True) / ops.maximum(square, 1e-12)


def fuse(method, local, f_global):
    """Returns the fused local features; see `Fusion`.

    Args:
      method: "orthogonal", "concat" or "hadamard".
      local: (B, H, W, C), or their mean (B, C).
      f_global: (B, C).

    Returns:
      The shape of `local`; with "orthogonal", each vector is orthogonal to f_global.

    Reference: DOLG, equation 4.
    """
    if method == "concat":
        return local
    spread = f_global[:, None, None, :] if len(local.shape) == 4 else f_global
    if method == "hadamard":
        return local * spread
    return local - projection_coefficient(local, f_global) * spread


@keras.saving.register_keras_serializable("dolg_tf")
class ChannelNormalization(keras.layers.Layer):
    """Reorders RGB channels and standardises them: `(x[order] - mean) / std`.

    Args:
      channel_order: "rgb" or "bgr", as the next layer expects.
      mean, std: three floats each, in that order.

    Shapes: (B, H, W, 3) RGB in [0, 1] -> (B, H, W, 3).
    """

    def __init__(self, channel_order, mean, std, **kwargs):
        super().__init__(**kwargs)
        self.channel_order, self.mean, self.std = channel_order, tuple(mean), tuple(std)

    def call(self, inputs):
        if self.channel_order == "bgr":
            inputs = ops.flip(inputs, axis=-1)
        mean = ops.convert_to_tensor(self.mean, dtype=inputs.dtype)
        std = ops.convert_to_tensor(self.std, dtype=inputs.dtype)
        return (inputs - mean) / std

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        options = {"channel_order": self.channel_order, "mean": self.mean, "std": self.std}
        return {**super().get_config(), **options}


@keras.saving.register_keras_serializable("dolg_tf")
class GeM(keras.layers.Layer):
    """Generalised mean pooling, `mean(max(x, 1e-6)^p)^(1/p)` over the map.

    Args:
      p: exponent, above 0; 1 is the average, infinity the maximum.
      train_p: whether p is trained; it is stored with the weights either way.

    Shapes: (B, H, W, C) -> (B, C).

    Reference: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation,
      TPAMI 2018, equation 3. DOLG fixes p = 3; its code trains p.
    """

    def __init__(self, p=3.0, train_p=False, **kwargs):
        super().__init__(**kwargs)
        self.initial_p, self.train_p = p, train_p

    def build(self, inputs_shape):
        self.p = self.add_weight(
            name="p",
            shape=(1,),
            initializer=keras.initializers.Constant(self.initial_p),
            trainable=self.train_p,
        )

    def call(self, inputs):
        x = ops.power(ops.maximum(inputs, 1e-6), self.p)
        return ops.power(ops.mean(x, axis=(1, 2)), 1.0 / self.p)

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], inputs_shape[3])

    def get_config(self):
        return {**super().get_config(), "p": self.initial_p, "train_p": self.train_p}


def pooling(kind, p=3.0, **options):
    """Returns the layer that pools a map: (B, H, W, C) -> (B, C), in float32.

    Args:
      kind: "average", "gem", or "learned": GeM whose exponent is trained.
      p: initial exponent of GeM.
      options: of the layer.
    """
    if kind == "average":
        return keras.layers.GlobalAveragePooling2D(dtype="float32", **options)
    return GeM(p, kind == "learned", dtype="float32", **options)


@keras.saving.register_keras_serializable("dolg_tf")
class MultiAtrous(keras.layers.Layer):
    """Convolutions at several dilations and a pooled branch, concatenated and reduced.

    The branches are a 1x1 convolution, a 3x3 convolution per dilation, and a pooled branch (mean
    of the map, 1x1, ReLU, broadcast), each with half the output's channels; then 1x1 and ReLU.
    The paper's figure 2 omits the 1x1 branch; the authors' code has it.

    Args:
      dilations: of the 3x3 convolutions.
      channels: of the output; None: as many as the input has.
      context: whether to add the 1x1 and the pooled branch to the dilated ones. The winner of
        Kaggle's landmark recognition 2021 used neither.

    Shapes: (B, H, W, C) -> (B, H, W, channels).
    """

    def __init__(self, dilations=(6, 12, 18), channels=None, context=True, **kwargs):
        super().__init__(**kwargs)
        self.dilations, self.channels, self.context = tuple(dilations), channels, context

    def build(self, inputs_shape):
        channels = self.channels or inputs_shape[-1]
        half, dtype = channels // 2, self.dtype_policy
        if self.context:
            self.point = keras.layers.Conv2D(half, 1, dtype=dtype, name="point")
            self.point.build(inputs_shape)
        self.dilated = [
            DilatedConv2D(half, 3, dilation_rate=d, dtype=dtype, name=f"dilated_{i}")
            for i, d in enumerate(self.dilations)
        ]
        for layer in self.dilated:
            layer.build(inputs_shape)
        if self.context:
            self.pooled = keras.layers.Conv2D(
                half, 1, activation="relu", dtype=dtype, name="pooled"
            )
            self.pooled.build((inputs_shape[0], 1, 1, inputs_shape[-1]))
        self.reduce = keras.layers.Conv2D(
            channels, 1, activation="relu", dtype=dtype, name="reduce"
        )
        self.reduce.build((*inputs_shape[:-1], half * (2 * self.context + len(self.dilations))))

    def call(self, inputs):
        branches = [conv(inputs) for conv in self.dilated]
        if self.context:
            shape = ops.shape(inputs)
            pooled = self.pooled(ops.mean(inputs, axis=(1, 2), keepdims=True))  # (B, 1, 1, C/2)
            # Bilinear upsampling from 1x1, as in the authors' code, is exactly a broadcast.
            pooled = ops.broadcast_to(pooled, (shape[0], shape[1], shape[2], pooled.shape[-1]))
            # The order of the authors' checkpoints.
            branches = [pooled, self.point(inputs), *branches]
        return self.reduce(ops.concatenate(branches, axis=-1))

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:-1], self.channels or inputs_shape[-1])

    def get_config(self):
        options = {
            "dilations": self.dilations,
            "channels": self.channels,
            "context": self.context,
        }
        return {**super().get_config(), **options}


@keras.saving.register_keras_serializable("dolg_tf")
class SpatialAttention(keras.layers.Layer):
    """Weighs L2-normalised local features by a learned attention map.

    A 1x1 convolution and batch norm give signed features. L2-normalised, they are the local
    features; the attention is softplus of a 1x1 convolution of their ReLU, to one channel.

    Args:
      use_attention: if False, the batch-normalised features are returned unchanged, with an
        attention of one (the paper's ablation).
      channels: of the local features; None: as many as the input has.

    Shapes: (B, H, W, C) -> local (B, H, W, channels), attention (B, H, W, 1), both float32.
    """

    def __init__(self, use_attention=True, channels=None, **kwargs):
        super().__init__(**kwargs)
        self.use_attention, self.channels = use_attention, channels

    def build(self, inputs_shape):
        dtype = self.dtype_policy
        channels = self.channels or inputs_shape[-1]
        features_shape = (*inputs_shape[:-1], channels)
        self.conv = keras.layers.Conv2D(channels, 1, dtype=dtype, name="conv")
        self.norm = BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=dtype, name="norm")
        self.conv.build(inputs_shape)
        self.norm.build(features_shape)
        if self.use_attention:
            self.score = keras.layers.Conv2D(1, 1, dtype=dtype, name="score")
            self.score.build(features_shape)

    def call(self, inputs, training=None):
        features = self.norm(self.conv(inputs), training=training)
        local = ops.cast(features, "float32")
        if not self.use_attention:
            return local, ops.ones_like(local[..., :1])
        score = ops.cast(self.score(ops.relu(features)), "float32")
        attention = ops.softplus(score)
        return attention * l2_normalize(local), attention

    def compute_output_spec(self, inputs, training=None):
        area = inputs.shape[:-1]
        local = keras.KerasTensor((*area, self.channels or inputs.shape[-1]), dtype="float32")
        return local, keras.KerasTensor((*area, 1), dtype="float32")

    def get_config(self):
        options = {"use_attention": self.use_attention, "channels": self.channels}
        return {**super().get_config(), **options}


@keras.saving.register_keras_serializable("dolg_tf")
class Fusion(keras.layers.Layer):
    """The pooled contribution of the local features to the global one.

    With average pooling, the mean of the orthogonal parts is exactly the orthogonal part of the
    mean, and the same holds for products, so the (B, H, W, C) result is never built.

    Args:
      method: "orthogonal", the part of each local feature that the global one does not explain; or
        one of the paper's ablations: "concat", the local feature itself, "hadamard", its product
        with the global one, element by element.
      pooling: "average", "gem" (p = 3) or "learned" (GeM, p trained).

    Shapes: f_local (B, H, W, C), f_global (B, C) -> (B, C).

    Reference: DOLG, section 3.3, and its table of fusions.
    """

    def __init__(self, method="orthogonal", pooling="average", **kwargs):
        super().__init__(**kwargs)
        for name, value, choices in (
            ("method", method, ("orthogonal", "concat", "hadamard")),
            ("pooling", pooling, ("average", "gem", "learned")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        self.method, self.pooling = method, pooling

    def build(self, f_local_shape, f_global_shape):
        if f_local_shape[-1] != f_global_shape[-1]:
            raise ValueError(
                f"local features have {f_local_shape[-1]} channels, the global feature "
                f"{f_global_shape[-1]}; the numbers must be equal"
            )
        self.pool = pooling(self.pooling, name="pool")
        self.pool.build(f_local_shape)

    def call(self, f_local, f_global):
        if self.pooling != "average":
            return self.pool(fuse(self.method, f_local, f_global))
        return fuse(self.method, self.pool(f_local), f_global)

    def compute_output_shape(self, f_local_shape, f_global_shape):
        return f_global_shape

    def get_config(self):
        return {**super().get_config(), "method": self.method, "pooling": self.pooling}
