"""The trainer: single steps of training and of validation, on all replicas."""

import contextlib
import functools

import keras
import tensorflow as tf

from dolg_tf.modeling import delg
from dolg_tf.modeling.backbones import find_backbone
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg, with_delg_local, with_local
from dolg_tf.modeling.heads import build_head
from dolg_tf.modeling.local_features import local_kind, with_local_features
from dolg_tf.modeling.model_dir import checkpoint_variables
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.optimizers import LossScale, clip_and_decay, make_optimizer
from dolg_tf.training.recompute import recomputing

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
# The results of a training step, summed over the global batch. `stop` counts the replicas whose
# worker was asked to stop, so that all workers stop at the same step.
LOSS, HITS, PHOTOS, STOP, GRADIENT_NORM = range(5)


class Trainer:
    """Network, head and optimizer in the scope of a strategy, with a step of each kind.

    Args:
      model, training: the recipe.
      num_classes: of the head.
      steps_per_epoch: for the learning rate.
      strategy: where it runs.
      class_counts: int (num_classes,), training photos per class, for margins per class.

    Raises:
      InputError: if the batch cannot be divided among replicas and accumulation pieces, or
        --recompute would save nothing.
    """

    def __init__(
        self,
        model: DolgConfig,
        training: TrainingConfig,
        num_classes: int,
        steps_per_epoch: int,
        strategy: tf.distribute.Strategy,
        class_counts=None,
    ):
        self.training, self.strategy = training, strategy
        replicas = strategy.num_replicas_in_sync
        if training.batch_size % (replicas * training.accumulate):
            raise InputError(
                f"--batch_size={training.batch_size} is not divisible by {replicas} replicas x "
                f"--accumulate={training.accumulate}"
            )
        if training.jit_compile and replicas > 1:
            raise InputError(f"--jit_compile works on one device; this run has {replicas}")
        with strategy.scope():
            self.network = build_dolg(model, _POLICIES[training.precision], seed=training.seed)
            _set_batch_norms(self.network, training)
            if not training.backbone_lr:  # no gradient is computed for it
                self.network.get_layer("backbone").trainable = False
            self.head = build_head(training, num_classes, class_counts)
            self.head.build(self.network.output_shape)
            self._heads = [self.head.trainable_variables]
            whole, self.local_losses, apart = _local_losses(
                self.network, model, training, num_classes
            )
            if self.local_losses is not None:
                self._heads.append(self.local_losses.classifier.trainable_variables)
            self.variables = sum(self._heads, self.network.trainable_variables)
            paths = [variable.path for variable in self.variables]
            self._apart = [paths.index(variable.path) for variable in apart]
            self.optimizer = make_optimizer(
                training,
                steps_per_epoch,
                self.variables,
                self.network.get_layer("backbone").trainable_variables,
            )
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
            self.best = tf.Variable(-1.0, trainable=False, name="best")
            self._scale = LossScale() if training.precision == "float16" else None
            self._totals = self._make_totals() if training.accumulate > 1 else []
            self._averages = self._make_averages() if training.ema_decay else []
            trained = local_kind(self.network).name != "map"
            self._local = with_local_features(self.network) if trained else None
            # By the weights that it belongs to; 0 until the first validation.
            self.local_threshold = {
                weights: tf.Variable(0.0, trainable=False, name=f"local_threshold_{weights}")
                for weights in (("raw", "ema") if self._averages else ("raw",))
                if trained
            }
        self._whole = whole
        self._describe = (
            recomputing(whole, find_backbone(model.backbone).block)
            if training.recompute
            else functools.partial(whole, training=True)
        )
        self._sums_and_gradients = self._replica_gradients
        if training.jit_compile:
            self._sums_and_gradients = tf.function(self._replica_gradients, jit_compile=True)

    def _make_totals(self) -> list[tf.Variable]:
        """Returns sums of the gradients of the pieces so far, separate for each replica."""
        return [
            tf.Variable(
                tf.zeros(variable.shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for variable in self.variables
        ]

    def _make_averages(self) -> list[tuple]:
        """Returns pairs of a moving average and the variable that it follows."""
        return [
            (tf.Variable(variable.value, trainable=False), variable)
            for variable in sum(self._heads, self.network.variables)
        ]

    def state(self) -> dict:
        """Returns the variables for a checkpoint."""
        state = {
            "step": self.step,
            "best": self.best,
            "network": checkpoint_variables(self.network),
            "head": {variable.name: variable.value for variable in self.head.variables},
            "optimizer": {slot.path: slot.value for slot in self.optimizer.variables},
        }
        if self.local_losses is not None:
            classifier = self.local_losses.classifier
            state[classifier.name] = {v.name: v.value for v in classifier.variables}
        if self.local_threshold:
            state["local_threshold"] = self.local_threshold
        if self._averages:
            state["ema"] = {variable.path: average for average, variable in self._averages}
        if self._scale is not None:
            state["loss_scale"] = self._scale.state()
        return state

    def reset_averages(self) -> None:
        """Starts the moving average at the present weights."""
        for average, variable in self._averages:
            average.assign(variable.numpy())

    @contextlib.contextmanager
    def averaged(self):
        """Replaces the weights by their moving average, if there is one."""
        raw = [variable.numpy() for _, variable in self._averages]
        for average, variable in self._averages:
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for (_, variable), value in zip(self._averages, raw, strict=True):
                variable.assign(value)

    def train_step(self, pieces, stop: bool = False) -> tf.Tensor:
        """Updates the weights by one global batch.

        Args:
          pieces: `accumulate` distributed batches of images, labels and weights.
          stop: whether this worker was asked to stop.

        Returns:
          float32 (5,): mean loss; number of photos whose cosine without margin is largest for
          their own class; number of photos that counted; number of replicas asked to stop; norm of
          the gradient of the loss.
        """
        sums = [self._accumulate_step(piece) for piece in pieces[:-1]]
        last = self._update_step(pieces[-1], tf.constant(float(stop)))
        return tf.add_n([*(tf.pad(part, [[0, 2]]) for part in sums), last]) if sums else last

    def agreed_step(self) -> int:
        """Returns the number of completed steps.

        Raises:
          InputError: if the workers did not restore the same step.
        """
        step = int(self.step.numpy())
        if self.mean(step) != step:
            raise InputError(
                f"this worker found step {step} in {self.training.logdir}, another worker a "
                "different step; --logdir must be one folder that all machines share"
            )
        return step

    def mean(self, value: float) -> float:
        """Returns the mean of a number over the replicas of all workers."""
        total = self._sum(tf.constant(value, tf.float64))
        return float(total) / self.strategy.num_replicas_in_sync

    @tf.function
    def _sum(self, value):
        return self.strategy.reduce("SUM", self.strategy.run(tf.identity, args=(value,)), axis=None)

    def watched(self) -> dict[str, float]:
        """Returns the values worth monitoring besides the loss."""
        norm = tf.linalg.global_norm([variable.value for variable in self.variables])
        values = {"weight_norm": float(norm)}
        for layer in self.network.layers:
            if layer.name == "gem":
                values["gem_p"] = layer.p.numpy().item()
            elif layer.name.startswith("fusion") and layer.pooling == "learned":
                values[f"{layer.name}_p"] = layer.pool.p.numpy().item()
        if "t" in {variable.name for variable in self.head.variables}:
            values["curricular_t"] = float(self.head.t.numpy())
        if self._scale is not None:
            values["loss_scale"] = float(self._scale.value.numpy())
        return values

    @tf.function
    def _accumulate_step(self, batch):
        def accumulate(*piece):
            sums, gradients = self._sums_and_gradients(*piece)
            for total, gradient in zip(self._totals, gradients, strict=True):
                total.assign_add(gradient)
            return sums

        return self.strategy.reduce("SUM", self.strategy.run(accumulate, args=batch), axis=None)

    @tf.function
    def _update_step(self, batch, stop):
        results, gradients, norm = self.strategy.run(self._replica_reduce, args=(*batch, stop))
        norm = self.strategy.experimental_local_results(norm)[0]

        def apply():
            self.strategy.run(self._replica_apply, args=(gradients, norm))
            for average, variable in self._averages:
                self.strategy.extended.update(average, self._move_average, args=(variable.value,))
            return tf.constant(0)

        if self._scale is None:
            apply()
        else:
            finite = tf.math.is_finite(norm)
            tf.cond(finite, apply, lambda: tf.constant(0))
            self._scale.update(finite)
        sums = self.strategy.reduce("SUM", results, axis=None)
        return tf.concat([sums, norm[None]], axis=0)

    def _cosines(self, outputs) -> tf.Tensor:
        """Returns the cosines (B, num_classes) of what `_whole` gives."""
        return self.head(outputs if self.local_losses is None else outputs["descriptor"])

    def _replica_gradients(self, images, labels, weights):
        """Returns this replica's share of loss, hits and photos, and its (scaled) gradient."""
        with tf.GradientTape(persistent=bool(self._apart)) as tape:
            outputs = self._describe(images)
            cosines = self._cosines(outputs)
            logits = self.head.logits(cosines, labels, weights, training=True)
            loss = _weighted_loss(labels, logits, weights)
            local = 0.0
            if self.local_losses is not None:
                local = self.local_losses.total(self.local_losses.sums(outputs, labels, weights))
            parts = [loss, local] if self._apart else [loss + local]
            parts = [part / self.training.batch_size for part in parts]
            scale = 1.0 if self._scale is None else self._scale.value
            scaled = [part * scale for part in parts]
        values = [variable.value for variable in self.variables]
        gradients = tape.gradient(scaled[0], values)
        if self._apart:  # this loss does not reach the rest of the network
            more = tape.gradient(scaled[1], [values[i] for i in self._apart])
            for i, gradient in zip(self._apart, more, strict=True):
                gradients[i] = gradient if gradients[i] is None else gradients[i] + gradient
        hits = _weighted_hits(labels, cosines, weights)
        sums = tf.stack([tf.add_n(parts), hits, tf.reduce_sum(weights)])
        return sums, gradients

    def _replica_reduce(self, images, labels, weights, stop):
        """Returns this replica's results, and the gradient of the global batch with its norm."""
        sums, gradients = self._sums_and_gradients(images, labels, weights)
        if self._totals:
            gradients = [x + total for x, total in zip(gradients, self._totals, strict=True)]
            for total in self._totals:
                total.assign(tf.zeros_like(total))
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if self._scale is not None:
            gradients = [gradient / self._scale.value for gradient in gradients]
        return tf.concat([sums, stop[None]], axis=0), gradients, tf.linalg.global_norm(gradients)

    def _replica_apply(self, gradients, norm):
        gradients = clip_and_decay(gradients, norm, self.variables, self.training)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    def _move_average(self, average, value):
        decay = self.training.ema_decay
        if not self.training.whiten_shrinkage:  # a whitening is a start worth keeping
            # The first steps count more, as in tf.train.ExponentialMovingAverage.
            step = tf.cast(self.optimizer.iterations, tf.float32)
            decay = tf.minimum(decay, step / (step + 9.0))
        average.assign_sub((1.0 - decay) * (average - value))

    @tf.function
    def validation_step(self, batch) -> tf.Tensor:
        """Returns float32 sums over a batch: photos, loss (without margin) and hits.

        With losses of local features, their `sums` follow.
        """

        def replica_step(images, labels, weights):
            outputs = self._whole(images, training=False)
            cosines = self._cosines(outputs)
            loss = _weighted_loss(labels, self.training.scale * cosines, weights)
            hits = _weighted_hits(labels, cosines, weights)
            sums = tf.stack([tf.reduce_sum(weights), loss, hits])
            if self.local_losses is None:
                return sums
            return tf.concat([sums, self.local_losses.sums(outputs, labels, weights)], 0)

        return self.strategy.reduce("SUM", self.strategy.run(replica_step, args=batch), axis=None)

    @tf.function
    def strengths(self, batch) -> tuple[tf.Tensor, ...]:
        """Returns the strengths of the local features of a batch, per replica of this worker.

        Each is float32 (n,), over all cells of the photos that count.
        """

        def replica_step(images, _, weights):
            found = self._local(images, training=False)["strength"]
            return tf.reshape(tf.boolean_mask(found, weights > 0), [-1])

        return self.strategy.experimental_local_results(self.strategy.run(replica_step, args=batch))


def _local_losses(network, model: DolgConfig, training: TrainingConfig, num_classes: int) -> tuple:
    """Returns what trains local features beside the descriptor.

    Returns:
      The network with the results that the losses need; the losses, or None; and the variables that
      they alone may reach, which is empty where the network stops their gradients itself.

    Raises:
      InputError: if --attention_loss is given for a network without attention of DOLG's.
    """
    if not training.attention_loss:
        if not model.delg_local:
            return network, None, []
        whole = with_delg_local(network)
        return whole, delg.DelgLosses(num_classes, whole.output["p4"].shape[-1]), []
    flag = f"--attention_loss={training.attention_loss}"
    if model.delg_local:
        raise InputError(f"{flag}: DELG's local branch has this loss already; omit one of the two")
    if model.fusion == "global_only" or not model.self_attention:
        missing = "--fusion=global_only" if model.self_attention else "--noself_attention"
        raise InputError(f"{flag}: a network with {missing} has no attention; omit one of the two")
    whole = with_local(network)
    channels = whole.output["local"].shape[-1]
    losses = delg.AttentionLoss(num_classes, channels, training.attention_loss)
    layers = [layer for layer in network.layers if layer.name in ("multi_atrous", "local")]
    branch = [variable for layer in layers for variable in layer.trainable_variables]
    return whole, losses, [*branch, *losses.classifier.trainable_variables]


def _weighted_loss(labels, logits, weights) -> tf.Tensor:
    """Returns the sum of cross-entropies over the photos that count."""
    losses = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return tf.reduce_sum(weights * losses)


def _weighted_hits(labels, cosines, weights) -> tf.Tensor:
    """Returns the number of counted photos whose cosine is largest for their own class."""
    hits = tf.argmax(cosines, axis=1, output_type=tf.int32) == labels
    return tf.reduce_sum(weights * tf.cast(hits, tf.float32))


def _set_batch_norms(network: keras.Model, training: TrainingConfig) -> None:
    layers = network._flatten_layers(include_self=False, recursive=True)
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = training.sync_batch_norm
            layer.trainable = not training.freeze_batch_norm
