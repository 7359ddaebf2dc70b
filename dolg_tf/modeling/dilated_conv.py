"""A dilated convolution that is fast on TensorFlow."""

import keras


@keras.saving.register_keras_serializable("dolg_tf")
class DilatedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with stride 1, 'same' padding and a dilation, 3-40 times faster.

    Keras routes a dilated convolution through SpaceToBatch, which copies and pads the map.
    TensorFlow's own kernel handles the dilation directly and agrees to 1e-5. Other backends need
    no help.

    Shapes: (B, H, W, C) -> (B, H, W, filters).
    """

    def __init__(self, filters, kernel_size, dilation_rate=1, **kwargs):
        kwargs.setdefault("padding", "same")
        super().__init__(filters, kernel_size, dilation_rate=dilation_rate, **kwargs)
        odd = all(side % 2 for side in self.kernel_size)
        if self.padding != "same" or self.strides != (1, 1) or self.groups != 1 or not odd:
            raise ValueError(
                f"{self.name}: only padding 'same', stride 1, one group and odd kernels are "
                f"supported, not {self.padding!r}, {self.strides}, {self.groups} and "
                f"{self.kernel_size}"
            )

    def call(self, inputs):
        if keras.backend.backend() != "tensorflow":
            return super().call(inputs)
        import tensorflow as tf

        # On a GPU, cuDNN provides both gradients.
        convolve = _native if tf.config.list_physical_devices("GPU") else _native_with_cpu_gradient
        outputs = convolve(inputs, tf.convert_to_tensor(self.kernel), self.dilation_rate)
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return self.activation(outputs)


def _native(inputs, kernel, dilations):
    import tensorflow as tf

    return tf.nn.conv2d(inputs, kernel, 1, "SAME", dilations=dilations)


def _native_with_cpu_gradient(inputs, kernel, dilations):
    """`_native` with a gradient that works on every CPU and skips products with padding.

    TensorFlow's CPU gradient of a dilated convolution exists only in oneDNN, which is off by
    default on processors without AVX-512, and is slower than this one.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            # The gradient by the input is a convolution with the flipped kernel. Slicing with a
            # step of -1 would copy number by number and take six times as long.
            turned = tf.transpose(tf.reverse(kernel, (0, 1)), (0, 1, 3, 2))
            by_input = _native(upstream, turned, dilations)
            return by_input, _kernel_gradient(inputs, upstream, kernel.shape, dilations)

        return _native(inputs, kernel, dilations), gradient

    return convolve(inputs, kernel)


def _kernel_gradient(inputs, upstream, kernel_shape, dilations):
    """Returns the gradient by the kernel: one matrix product per tap, over the cells it reaches."""
    import tensorflow as tf

    shape = tf.shape(inputs)

    def reach(axis, tap):
        """The slices of input and output that this tap connects."""
        shift = (tap - kernel_shape[axis] // 2) * dilations[axis]
        side = shape[axis + 1]
        end = tf.maximum(side - abs(shift), 0)  # 0: the tap sees only padding
        first, second = slice(abs(shift), abs(shift) + end), slice(0, end)
        return (first, second) if shift > 0 else (second, first)

    products = []
    for row in range(kernel_shape[0]):
        in_rows, out_rows = reach(0, row)
        for column in range(kernel_shape[1]):
            in_columns, out_columns = reach(1, column)
            seen = tf.reshape(inputs[:, in_rows, in_columns], [-1, kernel_shape[2]])
            wanted = tf.reshape(upstream[:, out_rows, out_columns], [-1, kernel_shape[3]])
            products.append(tf.matmul(seen, wanted, transpose_a=True))
    return tf.reshape(tf.stack(products), kernel_shape)
