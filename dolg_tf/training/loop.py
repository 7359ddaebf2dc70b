"""The step loop: from records and a recipe to a run directory.

Order of initialisation:
  1. strategy, since machines must connect before TensorFlow does anything else;
  2. input pipelines and run directory, to find bad records or another run early;
  3. network, head, optimizer and step, in the strategy's scope;
  4. weights: own checkpoint, else --init_from or --backbone_weights, with a whitened last layer;
  5. distributed iterator, starting at the restored step.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input.pipeline import TrainingInput, validation_dataset
from dolg_tf.data.records.classes import landmarks_sha256, read_class_counts, with_classes
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.stage.config import InputError
from dolg_tf.stage.progress import waiting_for
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.distribution import (
    distribute,
    is_chief,
    make_strategy,
    naming_a_lost_worker,
    num_workers,
)
from dolg_tf.training.run_log import RunLog, check_run, lock_run, write_run
from dolg_tf.training.start import adopt_network, adopt_preprocessing, initialize
from dolg_tf.training.trainer import LOSS, STOP, Trainer
from dolg_tf.training.validation import (
    PICTURES,
    attention_pictures,
    median_strength,
    validate,
)
from dolg_tf.training.watch import Reports, format_values

log = logging.getLogger(__name__)

OVERFIT_STEPS = 200  # of --overfit_batch, unless --max_steps is less


class Stop:
    """Remembers SIGINT and SIGTERM, so that the current step is finished and saved."""

    def __init__(self):
        self.signal = 0
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number, _):
        if self.signal:  # a second signal ends the run at once
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class _Run:
    """The parts of a run."""

    trainer: Trainer
    photos: TrainingInput
    data: DataConfig
    checkpoints: Checkpoints
    log: RunLog
    reports: Reports
    retrieval: Callable[[keras.Model], dict[str, float]] | None
    first: int  # steps completed before
    last: int
    workers: int

    @property
    def training(self) -> TrainingConfig:
        return self.trainer.training

    @property
    def logdir(self) -> pathlib.Path:
        return pathlib.Path(self.training.logdir)


def train(
    model: DolgConfig,
    data: DataConfig,
    training: TrainingConfig,
    retrieval: Callable[[keras.Model], dict[str, float]] | None = None,
) -> pathlib.Path:
    """Trains a DOLG network and returns its run directory.

    A run directory with a checkpoint of the same recipe is continued. On SIGINT and SIGTERM the
    current step is finished and saved; the exit codes are 130 and 143. A signal to one of several
    workers stops all.

    Args:
      model, data, training: the recipe.
      retrieval: function of the network to scores, including "mAP", called at each validation; the
        best checkpoint is then the one with the highest mAP.

    Raises:
      InputError: if records, weights or the run directory do not fit.
      FloatingPointError: if the loss is not finite.
      OSError: if a checkpoint cannot be written, or another worker is lost.
    """
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(training.worker_timeout)
    with naming_a_lost_worker(strategy):
        return _train(model, data, training, retrieval, strategy)


def _train(model, data, training, retrieval, strategy) -> pathlib.Path:
    chief, workers = is_chief(strategy), num_workers(strategy)
    data = with_classes(data)
    if training.whiten_shrinkage and data.shard_by == "file" and workers > 1:
        raise InputError(
            "--whiten_shrinkage with --shard_by=file: each worker would learn a different "
            "whitening; use --shard_by=photo"
        )
    photos = TrainingInput(data, training.batch_size, training.seed, workers)
    if data.validation_file_pattern:
        validation_dataset(data, training.batch_size)  # so that it fails now, not in an hour
    upright = photos.upright()
    steps = photos.steps_per_epoch * training.epochs
    last = min(steps, training.max_steps or steps)
    if training.init_from:
        model = adopt_network(model, training.init_from, training.logdir)
    else:
        model = adopt_preprocessing(model, training)
    counts = None
    if training.margin_range:
        counts = read_class_counts(data.train_file_pattern, data.num_classes)
    landmarks = landmarks_sha256(data.train_file_pattern)

    def make_trainer():
        per_epoch = photos.steps_per_epoch
        return Trainer(model, training, data.num_classes, per_epoch, strategy, counts)

    logdir = pathlib.Path(training.logdir)
    if training.overfit_batch:
        trainer = make_trainer()
        initialize(trainer, landmarks, photos)
        _overfit(trainer, photos, min(training.max_steps or OVERFIT_STEPS, OVERFIT_STEPS))
        return logdir
    with lock_run(logdir) if chief else contextlib.nullcontext():
        check_run(model, data, training, landmarks)
        trainer = make_trainer()
        checkpoints = Checkpoints(logdir, trainer.state(), training.keep_checkpoints, chief)
        if checkpoints.restore(training.restore):
            log.info("continuing %s at step %d of %d", logdir, trainer.step.numpy(), last)
        else:
            initialize(trainer, landmarks, photos)
        first = trainer.agreed_step()
        log.info(
            "%d photos (%s), %d classes, %d steps of %d photos on %d replicas, %.1f M parameters",
            photos.num_photos,
            "turned upright" if upright else "as they are stored",
            data.num_classes,
            last,
            training.batch_size,
            strategy.num_replicas_in_sync,
            trainer.network.count_params() / 1e6,
        )
        if chief:  # not earlier, since a failed start is not a run
            write_run(model, data, training, landmarks)
        run_log = RunLog(logdir, first, chief)
        reports = Reports(trainer, photos, run_log, last)
        run = _Run(
            trainer, photos, data, checkpoints, run_log, reports, retrieval, first, last, workers
        )
        try:
            with Stop() as stop:
                _loop(run, stop)
        finally:
            run_log.close()
    if int(trainer.step.numpy()) < last:
        log.info(
            "interrupted and saved at step %d; the same command continues", trainer.step.numpy()
        )
        raise SystemExit(128 + (stop.signal or signal.SIGTERM))
    if stop.signal:  # too late to stop the training, but not what follows it
        signal.raise_signal(stop.signal)
    return logdir


def _loop(run: _Run, stop: Stop) -> None:
    """Runs the steps from `first` to `last`, or until a signal."""
    training, trainer = run.training, run.trainer
    validate_every = training.validate_every or run.photos.steps_per_epoch
    batches = _batches(run.trainer, run.photos, run.first, run.last)
    result, profiling = None, False
    for step in range(run.first + 1, run.last + 1):
        if step in training.profile_steps[:1]:
            tf.profiler.experimental.start(str(run.logdir / "tensorboard"))
            profiling = True
        start = time.monotonic()
        with waiting_for(f"the photos of step {step}"):
            pieces = next(batches)
        waited = time.monotonic() - start
        with _pace(run, step):
            before, result = result, trainer.train_step(pieces, bool(stop.signal))
        trainer.step.assign(step)
        run.reports.add(result, waited)
        if step == run.first + 1:
            # This step traces and compiles, so its rate is meaningless.
            log.info("step %d/%d  loss %.4g", step, run.last, result[LOSS])
            run.reports.restart_clock()
        leaving = _stopping(run, stop, before, step)
        if profiling and step in (training.profile_steps[1], run.last):
            result.numpy()  # waits for the step to end
            tf.profiler.experimental.stop()
            profiling = False
        due = step % validate_every == 0 and not leaving
        validating = due or step == run.last
        saving = leaving or step == run.last or step % training.checkpoint_every == 0
        if saving or validating or step % training.log_every == 0:
            run.reports.report(step)
        if validating:
            _judge(run, pieces, step)
            # A signal during validation must not leave a step unsaved.
            leaving = run.workers == 1 and bool(stop.signal)
        if saving or leaving:
            run.checkpoints.save()
        if leaving:
            return
        if not run.reports.results:
            run.reports.restart_clock()


def _batches(trainer: Trainer, photos: TrainingInput, first: int, last: int) -> Iterator[tuple]:
    """Yields the pieces of the batches of steps `first` to `last` - 1, counted from 0."""
    pieces = trainer.training.accumulate

    def make(worker, num_workers, replicas):
        dataset = photos.dataset(first, last - first, worker, num_workers, replicas * pieces)
        # With an endless dataset, workers need not ask each other at each step whether photos are
        # left.
        return dataset.repeat()

    iterator = iter(distribute(trainer.strategy, make))
    for step in range(first, last):
        try:
            yield tuple(next(iterator) for _ in range(pieces))
        except tf.errors.OpError as error:
            raise photos.describe(error, step) from error


def _overfit(trainer: Trainer, photos: TrainingInput, steps: int) -> None:
    """Trains on the first batch only, and writes nothing.

    Raises:
      InputError: if the loss does not fall to a tenth.
    """
    pieces = next(_batches(trainer, photos, 0, 1))
    losses = []
    for step in range(1, steps + 1):
        losses.append(float(trainer.train_step(pieces)[LOSS]))
        if step == 1 or step % trainer.training.log_every == 0:
            log.info("overfit_batch: step %d/%d  loss %.4g", step, steps, losses[-1])
    if not losses[-1] < losses[0] / 10:
        raise InputError(
            f"--overfit_batch: the loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {steps} "
            "steps, not to a tenth; try another --initial_lr, then check labels and photos"
        )
    log.info("overfit_batch: passed, the loss went from %.4g to %.4g", losses[0], losses[-1])


def _stopping(run: _Run, stop: Stop, before: tf.Tensor | None, step: int) -> bool:
    """Whether the loop ends with this step; the answer is the same on all workers.

    With several workers it depends on the step before, since this one may still be running.
    """
    if run.workers == 1:
        return bool(stop.signal)
    with _pace(run, step - 1):  # on a GPU, the wait is here
        return before is not None and float(before[STOP]) > 0


def _pace(run: _Run, step: int) -> contextlib.AbstractContextManager:
    """Logs now and then, if there are several workers, that a step takes long."""
    if run.workers == 1:
        return contextlib.nullcontext()
    return waiting_for(f"the slowest of {run.workers} workers in step {step}")


def _judge(run: _Run, pieces: tuple, step: int) -> None:
    """Validates, logs pictures of the attention, and saves a checkpoint that is the best so far.

    The threshold of local features, which is part of the checkpoints, is measured too.
    """
    trainer, judged = run.trainer, {}
    thresholds = trainer.local_threshold
    with trainer.averaged():
        if run.data.validation_file_pattern:
            judged["validation"] = validate(trainer, run.data)
        if run.retrieval is not None:
            judged["retrieval"] = run.retrieval(trainer.network)
        if "ema" in thresholds:
            thresholds["ema"].assign(median_strength(trainer, run.data, pieces))
        images = trainer.strategy.experimental_local_results(pieces[0])[0][0][:PICTURES]
        pictures = attention_pictures(trainer, images)
    if "raw" in thresholds:
        thresholds["raw"].assign(median_strength(trainer, run.data, pieces))
    if thresholds:
        values = judged.setdefault("validation" if "validation" in judged else "train", {})
        values["local_threshold"] = float(thresholds.get("ema", thresholds["raw"]).numpy())
    for split, values in judged.items():
        run.log.write(step, split, values)
        log.info("step %d  %s  %s", step, split, format_values(values))
    if pictures is not None:
        run.log.write_pictures(step, "attention", pictures)
    if "retrieval" in judged:
        score = judged["retrieval"]["mAP"]
    elif "validation" in judged:
        score = judged["validation"]["accuracy"]
    else:
        return
    score = trainer.mean(score)  # all workers take part in saving, so they must agree
    if math.isfinite(score) and score > float(trainer.best.numpy()):
        trainer.best.assign(score)
        run.checkpoints.save_best()
