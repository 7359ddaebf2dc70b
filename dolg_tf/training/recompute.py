"""Gradient checkpointing: the backward pass computes the maps of the backbone again.

Only the input of each residual block is kept from the forward to the backward pass, which computes
the block again when it needs it. The network itself does not change.

`tf.recompute_grad` and `keras.RematScope` will not do: a block's second pass would update the
moving statistics of its batch norms twice, and the scope keeps the map between every two layers.

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
    """Returns the network in training mode, as a function that saves memory.

    Args:
      network: from `build_dolg`, or one with more of its results.
      block: function of the name of a layer of its backbone to the layer's residual block, "" if
        it is in none.

    Returns:
      A function of photos (B, H, W, 3) with the results of `network(photos, training=True)` and
      the same updates of moving statistics.

    Raises:
      InputError: if no layer of the backbone is in a block, so that nothing would be saved.
    """
    backbone, nodes = network.get_layer("backbone"), _nodes(network)

    def block_of(node):
        return block(node.operation.name)

    if not any(map(block_of, _nodes(backbone))):
        raise InputError(
            "--recompute saves nothing with a backbone without residual blocks; omit it, or give a "
            "larger --accumulate to save memory"
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
        outputs = [tensors[id(output)] for output in network.outputs]
        return keras.tree.pack_sequence_as(network.output, outputs)

    return forward


class _Segment:
    """Neighbouring nodes of a graph of layers, whose inner results are not kept."""

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
        """Reads the segment's inputs from tensors by id, and adds its outputs to them."""
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
        """Returns `_compute`, differentiable by inputs and trained weights, keeping only those."""
        number, trained = len(self._inputs), len(self._trained)
        changed = []

        @tf.custom_gradient
        def compute(*arguments):
            def gradient(*upstream):
                upstream = upstream[: len(self._outputs)]  # the state has none
                # The dependency keeps all blocks from being computed again at once, and grappler
                # from merging these operations with those of the forward pass.
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
        """Returns the outputs, and the new state; None where it is unchanged."""
        tensors = dict(zip(self._inputs, inputs, strict=True))
        mapping = list(zip([*self._trained, *self._state], weights, strict=True))
        with keras.StatelessScope(mapping) as scope:  # leaves the variables unchanged
            _run(self._nodes, tensors)
        before = weights[len(self._trained) :]
        after = [scope.get_current_value(variable) for variable in self._state]
        state = [y if y is not x else None for x, y in zip(before, after, strict=True)]
        return [tensors[key] for key in self._outputs], state


def _nodes(model: keras.Model) -> list:
    """Returns the layer calls of a functional model, in an order that can be run."""
    by_depth = model._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _run(nodes: list, tensors: dict[int, tf.Tensor], instead: dict | None = None) -> None:
    """Runs the nodes in training mode and adds their outputs to `tensors`.

    Args:
      nodes: of a functional model.
      tensors: results of the nodes before, by the id of the symbolic tensor.
      instead: functions that replace layers, by layer.
    """
    for node in nodes:
        layer = (instead or {}).get(node.operation, node.operation)
        arguments, options = node.arguments.fill_in(tensors)
        if "training" in inspect.signature(getattr(layer, "call", layer)).parameters:
            options = {**options, "training": True}
        outputs = keras.tree.flatten(layer(*arguments, **options))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
