"""Gradient checkpointing: the backward pass computes the maps of the backbone once more.

Of each residual block of the backbone only the input is kept from the forward pass to the backward
pass, which computes the block again when its turn has come. The network itself stays as it is.

Not by `tf.recompute_grad` or `keras.RematScope`: with them a block's second pass would move the
moving statistics of its batch norms a second time, and the scope keeps the map between every two
layers.

Reference: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016,
  https://arxiv.org/abs/1604.06174, section 4.
"""

import inspect
import itertools
from collections.abc import Callable

import keras
import tensorflow as tf

from dolg_tf.stage.config import InputError


def recomputing(
    network: keras.Model, block: Callable[[str], str]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the network in training, as a function that keeps little for the backward pass.

    Args:
      network: from `build_dolg`.
      block: of its backbone: the name of a layer's residual block, by the layer's name; "" outside
        the blocks.

    Returns:
      A function of photos (B, H, W, 3) to descriptors (B, descriptor_size), which gives what
      `network(photos, training=True)` gives and updates the same moving statistics.

    Raises:
      InputError: if no layer of the backbone is in a block, so that nothing would be saved.
    """
    backbone, nodes = network.get_layer("backbone"), _nodes(network)

    def block_of(node):
        return block(node.operation.name)

    if not any(map(block_of, _nodes(backbone))):
        raise InputError(
            "--recompute saves nothing with a backbone without residual blocks; leave it out, or "
            "give a larger --accumulate to save memory"
        )
    groups = [list(group) for _, group in itertools.groupby(_nodes(backbone), block_of)]
    segments = [_Segment(group, backbone) for group in groups]

    def in_segments(images, **_):
        tensors = {id(backbone.inputs[0]): images}
        for segment in segments:
            segment.run(tensors)
        return [tensors[id(output)] for output in backbone.outputs]

    @tf.autograph.experimental.do_not_convert
    def forward(images):
        tensors = {id(network.inputs[0]): images}
        _run(nodes, tensors, {backbone: in_segments})
        return tensors[id(network.outputs[0])]

    return forward


class _Segment:
    """Some neighbouring nodes of a graph of layers, of whose inside nothing is kept."""

    def __init__(self, nodes: list, model: keras.Model):
        self._nodes = nodes
        inside = {id(tensor): tensor for node in nodes for tensor in node.outputs}
        taken = {id(tensor): tensor for node in nodes for tensor in node.input_tensors}
        others = [node for node in _nodes(model) if node not in nodes]
        wanted = {id(tensor) for node in others for tensor in node.input_tensors}
        wanted |= {id(tensor) for tensor in model.outputs}
        self._inputs = [key for key in taken if key not in inside]
        self._outputs = [key for key in inside if key in wanted]
        layers = [node.operation for node in nodes]
        self._trained = [v for layer in layers for v in layer.trainable_variables]
        self._state = [v for layer in layers for v in layer.non_trainable_variables]

    def run(self, tensors: dict[int, tf.Tensor]) -> None:
        """Adds the segment's outputs to the tensors, by id, that hold its inputs."""
        variables = [*self._trained, *self._state]
        outputs, state = self._recomputed(
            [tensors[key] for key in self._inputs],
            [tf.convert_to_tensor(variable.value) for variable in variables],
        )
        tensors.update(zip(self._outputs, outputs, strict=True))
        for variable, value in zip(self._state, state, strict=True):
            if value is not None:
                variable.assign(value)

    def _recomputed(self, inputs: list, weights: list) -> tuple[list, list]:
        """Returns `_compute`, differentiable by inputs and trained weights, of which it keeps."""
        number, trained = len(self._inputs), len(self._trained)
        changed = []

        @tf.custom_gradient
        def compute(*arguments):
            def gradient(*upstream):
                upstream = upstream[: len(self._outputs)]  # the state has none
                # Not before, or all blocks would be computed again at once; and without, grappler
                # would take these operations for those of the forward pass.
                with tf.control_dependencies(upstream):
                    sources = [tf.identity(x) for x in arguments[: number + trained]]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    values = [*sources[number:], *arguments[number + trained :]]
                    outputs, _ = self._compute(sources[:number], values)
                gradients = tape.gradient(outputs, sources, output_gradients=upstream)
                return [*gradients, *(None for _ in self._state)]

            outputs, state = self._compute(arguments[:number], arguments[number:])
            changed[:] = [value is not None for value in state]
            return [*outputs, *(value for value in state if value is not None)], gradient

        results = compute(*inputs, *weights)
        state = iter(results[len(self._outputs) :])
        return results[: len(self._outputs)], [next(state) if new else None for new in changed]

    def _compute(self, inputs, weights) -> tuple[list, list]:
        """Returns the outputs, and what becomes of the state; None: it stays."""
        tensors = dict(zip(self._inputs, inputs, strict=True))
        mapping = list(zip([*self._trained, *self._state], weights, strict=True))
        with keras.StatelessScope(mapping) as scope:  # variables are read from it, not changed
            _run(self._nodes, tensors)
        before = weights[len(self._trained) :]
        after = [scope.get_current_value(variable) for variable in self._state]
        state = [y if y is not x else None for x, y in zip(before, after, strict=True)]
        return [tensors[key] for key in self._outputs], state


def _nodes(model: keras.Model) -> list:
    """Returns the calls of layers that a functional model consists of, in an order they can run."""
    by_depth = model._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _run(nodes: list, tensors: dict[int, tf.Tensor], instead: dict | None = None) -> None:
    """Adds what the nodes give, in training, to tensors by the id of their symbolic tensor.

    Args:
      nodes: of a functional model.
      tensors: of the nodes before.
      instead: of layers, the functions that take their place.
    """
    for node in nodes:
        layer = (instead or {}).get(node.operation, node.operation)
        arguments, options = node.arguments.fill_in(tensors)
        if "training" in inspect.signature(getattr(layer, "call", layer)).parameters:
            options = {**options, "training": True}
        outputs = keras.tree.flatten(layer(*arguments, **options))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
