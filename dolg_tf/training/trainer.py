"""The step loop: records and a configuration become a run directory.

Order of initialisation:
  1. strategy, since several machines must meet before TensorFlow does anything else;
  2. input pipelines and run directory (bad records, or another run, are found early);
  3. network, head, optimizer and step in the strategy's scope;
  4. weights: own checkpoint, else --init_from, else --backbone_weights;
  5. distributed iterator from the restored step on.
"""

import dataclasses
import logging
import math
import pathlib
import signal
import time

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.config import InputError
from dolg_tf.data.pipeline import TrainingInput, describe_validation, validation_dataset
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.heads import ArcFace
from dolg_tf.modeling.model_dir import checkpoint_variables, load_dolg, load_head, read_config
from dolg_tf.progress import format_seconds
from dolg_tf.recipe import DataConfig, DolgConfig, TrainingConfig
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import distribute, is_chief, make_strategy
from dolg_tf.training.run_log import RunLog, check_run, write_run
from dolg_tf.training.schedules import WarmupCosine
from dolg_tf.weights.imagenet import load_backbone

log = logging.getLogger(__name__)


def _is_kernel(variable) -> bool:
    """Whether a variable takes weight decay: kernels do, norms, biases and exponents do not."""
    return variable.path.rsplit("/", 1)[-1] == "kernel"


def _make_optimizer(training: TrainingConfig, steps: int, variables: list):
    """Returns the built optimizer of a run of `steps` steps."""
    warmup = round(training.warmup_epochs * steps / training.epochs)
    rate = WarmupCosine(training.initial_lr, warmup, steps)
    if training.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            rate, momentum=training.momentum, nesterov=training.nesterov
        )
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=training.weight_decay)
        optimizer.exclude_from_weight_decay([v for v in variables if not _is_kernel(v)])
    optimizer.build(variables)
    return optimizer


class Trainer:
    """Network, head and optimizer in the scope of a strategy, and one step of each kind."""

    def __init__(
        self,
        model: DolgConfig,
        data: DataConfig,
        training: TrainingConfig,
        steps: int,
        strategy: tf.distribute.Strategy,
    ):
        self.model, self.training, self.strategy = model, training, strategy
        replicas = self.strategy.num_replicas_in_sync
        if training.batch_size % replicas:
            raise InputError(
                f"--batch_size={training.batch_size} is not divisible by {replicas} replicas"
            )
        dtype = "mixed_bfloat16" if training.precision == "bfloat16" else "float32"
        with self.strategy.scope():
            self.network = build_dolg(model, dtype, seed=training.seed)
            self.head = ArcFace(data.num_classes, training.margin, training.scale, name="head")
            self.head.build((None, model.descriptor_size))
            self.variables = self.network.trainable_variables + self.head.trainable_variables
            self.optimizer = _make_optimizer(training, steps, self.variables)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
            self.best = tf.Variable(-1.0, trainable=False, name="best")

    def state(self) -> dict:
        """Returns what a checkpoint holds."""
        # Without the optimizer's own name, which counts the optimizers of a process.
        slots = {slot.path.split("/", 1)[-1]: slot.value for slot in self.optimizer.variables}
        return {
            "step": self.step,
            "best": self.best,
            "network": checkpoint_variables(self.network),
            "head": {variable.name: variable.value for variable in self.head.variables},
            "optimizer": slots,
        }

    def initialize(self) -> None:
        """Fills the weights of a fresh run."""
        if not self.training.init_from:
            load_backbone(self.network, self.training.backbone_weights)
            return
        source, config, _ = load_dolg(self.training.init_from)
        for name in (field.name for field in dataclasses.fields(config)):
            # The exponent is one of the weights; whether it is trained is this run's choice.
            free = name in ("gem_p", "train_gem_p")
            if not free and getattr(config, name) != getattr(self.model, name):
                raise InputError(
                    f"--init_from={self.training.init_from} has {name} {getattr(config, name)}, "
                    f"this run {getattr(self.model, name)}"
                )
        self.network.set_weights(source.get_weights())
        kernel = load_head(self.training.init_from, self.head.num_classes)
        if kernel is not None:
            self.head.kernel.assign(kernel)
        log.info(
            "weights from %s; class head: %s",
            self.training.init_from,
            "random" if kernel is None else "taken too, the number of classes is the same",
        )

    def _update(self, gradients: list[tf.Tensor]) -> None:
        """Applies the gradients of one replica; Keras sums them over the replicas."""
        replicas = self.strategy.num_replicas_in_sync
        if self.training.optimizer == "sgd":
            # Each replica adds its share of the coupled L2 term, so that their sum holds it once.
            decay = self.training.weight_decay / replicas
            gradients = [
                gradient + decay * variable if _is_kernel(variable) else gradient
                for gradient, variable in zip(gradients, self.variables, strict=True)
            ]
        if self.training.clip_norm:
            # Clipping needs the sum; what is applied is summed again, hence the division.
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, self.training.clip_norm)
            gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    @tf.function
    def train_step(self, batch):
        """Returns mean loss and margin-free accuracy of one global batch; moves the weights."""

        def replica_step(images, labels):
            with tf.GradientTape() as tape:
                cosines = self.head(self.network(images, training=True))
                losses = keras.ops.sparse_categorical_crossentropy(
                    labels, self.head.logits(cosines, labels), from_logits=True
                )
                loss = tf.nn.compute_average_loss(
                    losses, global_batch_size=self.training.batch_size
                )
            values = [variable.value for variable in self.variables]
            self._update(tape.gradient(loss, values))
            hits = tf.argmax(cosines, axis=1, output_type=tf.int32) == labels
            return loss, tf.reduce_sum(tf.cast(hits, tf.float32)) / self.training.batch_size

        results = self.strategy.run(replica_step, args=batch)
        return tuple(self.strategy.reduce("SUM", result, axis=None) for result in results)

    @tf.function
    def validation_step(self, batch):
        """Returns sums over one batch: loss (without margin), hits, photos."""

        def replica_step(images, labels, weights):
            cosines = self.head(self.network(images, training=False))
            losses = keras.ops.sparse_categorical_crossentropy(
                labels, self.training.scale * cosines, from_logits=True
            )
            hits = tf.cast(tf.argmax(cosines, axis=1, output_type=tf.int32) == labels, tf.float32)
            sums = [losses * weights, hits * weights, weights]
            return [tf.reduce_sum(values) for values in sums]

        results = self.strategy.run(replica_step, args=batch)
        return tuple(self.strategy.reduce("SUM", result, axis=None) for result in results)


class _Stop:
    """Remembers SIGINT and SIGTERM, so that the step at hand is finished and saved."""

    def __init__(self):
        self.signal = 0
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number, _):
        if self.signal:  # asked twice: at once
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _validate(trainer: Trainer, data: DataConfig) -> dict[str, float]:
    """Returns loss and margin-free top-1 accuracy over the whole validation split."""

    def make(worker, num_workers, replicas):
        return validation_dataset(data, trainer.training.batch_size, worker, num_workers, replicas)[
            0
        ]

    sums = np.zeros(3)
    try:
        for batch in distribute(trainer.strategy, make):
            sums += [float(value) for value in trainer.validation_step(batch)]
    except tf.errors.OpError as error:
        raise describe_validation(error, data) from error
    return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2]}


def train(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> pathlib.Path:
    """Trains a DOLG network with ArcFace and returns its run directory.

    A run directory that holds a checkpoint of the same configuration is continued. SIGINT and
    SIGTERM finish the step, save, and exit with 130 and 143.

    Raises:
      InputError: on records, weights or a run directory that do not fit.
      FloatingPointError: when the loss is not finite.
    """
    strategy = make_strategy()
    photos = TrainingInput(data, training.batch_size, training.seed)
    if data.validation_file_pattern:
        validation_dataset(data, training.batch_size)  # fails now rather than in an hour
    steps = photos.steps_per_epoch * training.epochs
    last = min(steps, training.max_steps or steps)
    if training.init_from:  # what the source's weights expect is not this run's choice
        source, _ = read_config(training.init_from)
        model = dataclasses.replace(model, preprocessing=source.preprocessing)
    check_run(model, data, training)
    trainer = Trainer(model, data, training, steps, strategy)
    chief = is_chief(trainer.strategy)
    logdir = pathlib.Path(training.logdir)
    checkpoints = Checkpoints(logdir, trainer.state(), training.keep_checkpoints, chief)
    if checkpoints.restore(logdir):
        log.info("continuing %s at step %d of %d", logdir, trainer.step.numpy(), last)
    else:
        trainer.initialize()
    first = int(trainer.step.numpy())
    log.info(
        "%d photos, %d classes, %d steps of %d photos on %d replicas, %.1f M parameters",
        photos.num_photos,
        data.num_classes,
        last,
        training.batch_size,
        trainer.strategy.num_replicas_in_sync,
        trainer.network.count_params() / 1e6,
    )
    if chief:  # not before: a start that failed is no run
        write_run(model, data, training)
    run_log = RunLog(logdir, first, chief)
    try:
        with _Stop() as stop:
            _loop(trainer, photos, data, checkpoints, run_log, stop, first, last)
    finally:
        run_log.close()
    if stop.signal:
        log.info(
            "interrupted and saved at step %d; the same command continues", trainer.step.numpy()
        )
        raise SystemExit(128 + stop.signal)
    return logdir


def _loop(trainer, photos, data, checkpoints, run_log, stop, first: int, last: int) -> None:
    """Runs the steps from `first` to `last`, or until `stop`."""
    training = trainer.training
    validate_every = training.validate_every or photos.steps_per_epoch
    batches = iter(
        distribute(trainer.strategy, lambda *place: photos.dataset(first, last - first, *place))
    )
    window, start = [], time.monotonic()  # since the last log line
    for step in range(first + 1, last + 1):
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            raise photos.describe(error, step - 1) from error
        window.append(trainer.train_step(batch))
        trainer.step.assign(step)
        saving = stop.signal or step == last or step % training.checkpoint_every == 0
        validating = data.validation_file_pattern and (
            step == last or (step % validate_every == 0 and not stop.signal)
        )
        if saving or validating or step % training.log_every == 0 or step == first + 1:
            # The first step of a process traces and compiles: its rate says nothing.
            seconds = time.monotonic() - start
            _report(trainer, run_log, window, seconds, step, first, last)
            window = []
        if validating:
            values = _validate(trainer, data)
            run_log.write(step, "validation", values)
            log.info("step %d  validation  %s", step, _format(values))
            if values["accuracy"] > float(trainer.best.numpy()):
                trainer.best.assign(values["accuracy"])
                checkpoints.save_best()
        # A signal may have come while validating, or since: it leaves no step unsaved. Where
        # the loss was not looked at, it is before saving.
        leaving = bool(stop.signal)
        if leaving and window:
            _report(trainer, run_log, window, time.monotonic() - start, step, first, last)
        if saving or leaving:
            checkpoints.save()
        if leaving:
            return
        if not window:
            start = time.monotonic()


def _report(trainer, run_log, window, seconds: float, step: int, first: int, last: int) -> None:
    """Logs the means since the last report; refuses to go on from a loss that is not finite."""
    loss, accuracy = np.mean([[float(value) for value in row] for row in window], axis=0)
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} between steps {step - len(window) + 1} and {step}; lower "
            "--initial_lr or give --clip_norm. The last checkpoint is unharmed"
        )
    rate = len(window) * trainer.training.batch_size / seconds
    values = {
        "loss": loss,
        "accuracy": accuracy,
        "learning_rate": float(trainer.optimizer.learning_rate),
        "images_per_second": rate,
    }
    run_log.write(step, "train", values)
    eta = (
        ""
        if step == first + 1
        else f"  ETA {format_seconds((last - step) * seconds / len(window))}"
    )
    log.info("step %d/%d  %s%s", step, last, _format(values), eta)


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
