"""Results of heads, layers and networks on the backend that Keras runs on.

test_jax.py runs it in a separate process, with JAX: `both_backends.py OUTPUT.npz NAME...`, with
names of `PARTS`.
"""

import json
import pathlib
import sys
import zlib

import keras
import numpy as np
from keras import ops

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.modeling.dilated_conv import DilatedConv2D
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.modeling.heads import CLASSES
from dolg_tf.weights.official import load_state_dict

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SIZE = (97, 130)  # of the photo of r50.npz that R50 sees
SMALL = DolgConfig(
    backbone="resnet17_small", dilations=(1, 2), local_channels=32, descriptor_size=16
)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _normal(name: str, *shape) -> np.ndarray:
    return _rng(name).standard_normal(shape).astype(np.float32)


def _fill(layer) -> None:
    """Fills the variables by their names, since backends draw different numbers from one seed."""
    for variable in layer.variables:
        shape = tuple(variable.shape)
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(_rng(variable.path).uniform(0.5, 1.5, shape))
        elif variable.name == "kernel":
            spread = np.sqrt(2.0 / np.prod(shape[:-1]))
            variable.assign(spread * _normal(variable.path, *shape))
        elif variable.name != "p":
            variable.assign(0.1 * _normal(variable.path, *shape))


def _differentiated(function, variables: list, others: list, x) -> list:
    """Returns function(x), its gradients by x and the variables, and the others' new values."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return [value, *tape.gradient(value, [x, *(v.value for v in variables)]), *others]
    import jax

    def stateless(values, before, x):
        mapping = zip([*variables, *others], [*values, *before], strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)) as scope:
            value = function(x)
        return value, [scope.get_current_value(other) for other in others]

    call = jax.jit(jax.value_and_grad(stateless, argnums=(0, 2), has_aux=True))
    values, before = ([v.value for v in group] for group in (variables, others))
    (value, after), (by_variables, by_x) = call(values, before, x)
    return [value, by_x, *by_variables, *after]


def heads() -> dict:
    return {
        f"{cls.__name__}/{i}": value
        for cls in CLASSES.values()
        for i, value in enumerate(_head(cls(7, margin=0.2, scale=20.0)))
    }


def _head(head) -> list:
    head.build((None, 8))
    head.kernel.assign(_normal("kernel", *head.kernel.shape))
    for variable in head.non_trainable_variables:
        variable.assign(0.3)
    labels, x = np.array([0, 6, 2, 2, 5], np.int32), _normal("descriptors", 5, 8)
    x[4] = -ops.convert_to_numpy(head.kernel).reshape(-1, 8)[5]  # past pi - margin

    def loss(x):
        logits = head.logits(head(x), labels, training=True)
        return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))

    return _differentiated(loss, [head.kernel], head.non_trainable_variables, x)


def dilated() -> dict:
    layer = DilatedConv2D(5, 3, dilation_rate=2, activation="relu", name="dilated")
    layer.build((None, 7, 6, 4))
    _fill(layer)
    x = _normal("map", 2, 7, 6, 4)
    values = [
        layer(x),
        *_differentiated(lambda x: ops.sum(ops.sin(layer(x))), layer.variables, [], x),
    ]
    return {f"DilatedConv2D/{i}": value for i, value in enumerate(values)}


def official() -> dict:
    """The maps and the descriptor of R50, under the keys of the golden file."""
    sys.path.append(str(GOLDEN))
    import standin_weights as standin

    network = build_dolg(DolgConfig(preprocessing=OFFICIAL_PREPROCESSING))
    shapes = json.loads((GOLDEN / "r50.json").read_text())
    load_state_dict(network, {key: standin.value(key, shape) for key, shape in shapes.items()})
    photo = standin.image(*SIZE).astype(np.float32)[None] / 255
    found = golden_parts(intermediates(network).predict_on_batch(photo))
    return {f"{SIZE[0]}x{SIZE[1]}/{name}": value for name, value in found.items()}


def golden_parts(outputs: dict) -> dict[str, np.ndarray]:
    """Returns the parts of `intermediates` that the authors' golden files hold, for one photo."""
    maps = {name: np.asarray(x)[0] for name, x in outputs.items()}
    return {
        "f3": maps["p4"][:, :, ::64],
        "f4": maps["p5"][:, :, ::64],
        "local": maps["local"][:, :, ::64],
        "attention": maps["attention"][:, :, 0],
        "descriptor": maps["descriptor"],
    }


def training() -> dict:
    """Loss, gradients and moving averages of a small network in training."""
    network = build_dolg(SMALL)
    _fill(network)
    photos = _rng("photos").random((2, 64, 48, 3), np.float32)
    directions = _normal("directions", 2, SMALL.descriptor_size)
    trained, others = network.trainable_variables, network.non_trainable_variables
    values = _differentiated(
        lambda x: ops.sum(directions * network(x, training=True)), trained, others, photos
    )
    names = ["loss", "photos", *(v.path for v in trained), *(v.path for v in others)]
    return dict(zip(names, values, strict=True))


PARTS = {"heads": heads, "dilated": dilated, "official": official, "training": training}


def numbers(names) -> dict[str, np.ndarray]:
    """Returns the results of the named parts."""
    values = {key: value for name in names for key, value in PARTS[name]().items()}
    return {key: np.asarray(ops.convert_to_numpy(value)) for key, value in values.items()}


if __name__ == "__main__":
    if keras.backend.backend() != "jax":
        sys.exit(f"Keras runs on {keras.backend.backend()}, not on JAX")
    np.savez(sys.argv[1], **numbers(sys.argv[2:]))
