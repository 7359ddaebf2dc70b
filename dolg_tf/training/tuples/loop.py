"""The loop of HOW's training: whitening, mining, steps and validations, to a run directory."""

import dataclasses
import logging
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.modeling.config import HowConfig
from dolg_tf.stage.config import InputError
from dolg_tf.stage.progress import format_seconds, track
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.loop import Stop
from dolg_tf.training.run_log import RunLog, check_run, lock_run, write_run
from dolg_tf.training.start import adopt_preprocessing
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.training.tuples.mining import draw_epoch, hardest_negatives
from dolg_tf.training.tuples.photos import TuplePhotos, read_photos
from dolg_tf.training.tuples.trainer import TuplesTrainer
from dolg_tf.training.watch import format_values

log = logging.getLogger(__name__)


class _Interrupted(Exception):
    """A signal came while nothing had to be saved."""


@dataclasses.dataclass
class _Run:
    """The parts of a run."""

    trainer: TuplesTrainer
    photos: TuplePhotos
    checkpoints: Checkpoints
    log: RunLog
    retrieval: Callable[[keras.Model], dict[str, float]] | None
    per_epoch: int  # steps
    last: int
    stop: Stop

    @property
    def training(self) -> TuplesTraining:
        return self.trainer.training

    def drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        training = self.training
        return draw_epoch(self.photos, training.seed, epoch, training.pairs, training.pool)

    def heeding(self, photos: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the photos until a signal comes."""
        for photo in photos:
            if self.stop.signal:
                raise _Interrupted
            yield photo


def train(
    model: HowConfig,
    data: TuplesData,
    training: TuplesTraining,
    retrieval: Callable[[keras.Model], dict[str, float]] | None = None,
) -> pathlib.Path:
    """Trains a HOW network and returns its run directory.

    A run directory with a checkpoint of the same recipe is continued. On SIGINT and SIGTERM the
    current step is finished and saved; the exit codes are 130 and 143.

    Args:
      model, data, training: the recipe.
      retrieval: function of the network to scores, including "mAP", called at each validation; the
        best checkpoint is then the one with the highest mAP.

    Raises:
      InputError: if photos, weights or the run directory do not fit.
      FloatingPointError: if the loss is not finite.
      OSError: if a checkpoint cannot be written.
    """
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    photos = read_photos(data)
    model = adopt_preprocessing(model, training)
    pairs = len(draw_epoch(photos, training.seed, 0, training.pairs, 1)[0])
    per_epoch = pairs // training.tuples
    if not per_epoch:
        raise InputError(f"{pairs} pairs are less than the --tuples={training.tuples} of a step")
    last = min(per_epoch * training.epochs, training.max_steps or math.inf)
    logdir = pathlib.Path(training.logdir)
    with lock_run(logdir), Stop() as stop:
        check_run(model, data, training, None)
        trainer = TuplesTrainer(model, training, pairs)
        checkpoints = Checkpoints(logdir, trainer.state(), training.keep_checkpoints, chief=True)
        begun = checkpoints.restore(training.restore)
        first = int(trainer.step.numpy())
        run_log = RunLog(logdir, first, chief=True)
        run = _Run(trainer, photos, checkpoints, run_log, retrieval, per_epoch, last, stop)
        log.info("%d photos, %d pairs an epoch, %d steps", len(photos.paths), pairs, last)
        try:
            if begun:
                log.info("continuing %s at step %d", logdir, first)
            else:
                _start(run)
            write_run(model, data, training, None)
            if not begun:  # only now, or the whitening would have to be learned again
                checkpoints.save()
            _loop(run)
        except _Interrupted:
            log.info("interrupted; the same command continues from the latest checkpoint")
        finally:
            run_log.close()
    if int(trainer.step.numpy()) < last:
        raise SystemExit(128 + (stop.signal or signal.SIGTERM))
    if stop.signal:  # too late to stop the training, but not what follows it
        signal.raise_signal(stop.signal)
    return logdir


def _start(run: _Run) -> None:
    """Fills the weights of a fresh run: ImageNet's, then the whitening."""
    run.trainer.load_backbone(run.training.backbone_weights)
    count = min(run.training.whitening_photos, len(run.photos.paths))
    photos = track(run.heeding(run.photos.load(range(count))), count, "whitening")
    run.trainer.learn_whitening(photos)


def _loop(run: _Run) -> None:
    """Runs the steps from the present one to the last, or until a signal."""
    trainer, training = run.trainer, run.training
    step = int(trainer.step.numpy())
    while step < run.last:
        epoch, done = divmod(step, run.per_epoch)
        if not done:
            trainer.negatives.assign(_mine(run, epoch))
        end = min((epoch + 1) * run.per_epoch, run.last)
        for step in _steps(run, epoch, done, end):
            finished = step == end
            if finished and (step == run.last or (epoch + 1) % training.validate_every == 0):
                _judge(run, step)
            if finished or run.stop.signal or step % training.checkpoint_every == 0:
                run.checkpoints.save()
            if run.stop.signal:
                return


def _mine(run: _Run, epoch: int) -> np.ndarray:
    """Returns the numbers of the negatives of each pair, int64 (pairs, negatives)."""
    pairs, pool = run.drawn(epoch)

    def describe(numbers, what):
        photos = track(run.heeding(run.photos.load(numbers)), len(numbers), what)
        return np.stack([run.trainer.describe(photo).numpy() for photo in photos])

    queries = describe(pairs[:, 0], f"epoch {epoch + 1}, queries")
    searched = describe(pool, f"epoch {epoch + 1}, pool")
    clusters = run.photos.clusters
    own, others = clusters[pairs[:, 0]], clusters[pool]
    return pool[hardest_negatives(queries, own, searched, others, run.training.negatives)]


def _steps(run: _Run, epoch: int, done: int, end: int) -> Iterator[int]:
    """Does the steps of an epoch, of which `done` are done, and yields the number of each.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    training, trainer = run.training, run.trainer
    pairs, _ = run.drawn(epoch)
    tuples = np.concatenate([pairs, trainer.negatives.numpy()], axis=1)
    first = epoch * run.per_epoch
    tuples = tuples[done * training.tuples : (end - first) * training.tuples]
    photos = run.photos.load(tuples.ravel().tolist())
    rate = training.learning_rate * training.rate_decay**epoch
    losses, start = [], time.monotonic()
    for step in range(first + done + 1, end + 1):
        loss = 0.0
        for _ in range(training.tuples):
            loss += trainer.add_tuple([next(photos) for _ in range(tuples.shape[1])])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}; lower --learning_rate; the last checkpoint is "
                "intact"
            )
        trainer.update(rate)
        losses.append(loss / training.tuples)
        if step % training.log_every == 0 or step == end:
            seconds = (time.monotonic() - start) / len(losses)
            values = {"loss": float(np.mean(losses)), "learning_rate": rate}
            values["images_per_second"] = training.tuples * tuples.shape[1] / seconds
            run.log.write(step, "train", values)
            left = format_seconds((run.last - step) * seconds)
            log.info("step %d/%d  %s  ETA %s", step, run.last, format_values(values), left)
            losses, start = [], time.monotonic()
        yield step


def _judge(run: _Run, step: int) -> None:
    """Validates, and saves a checkpoint that is the best so far."""
    if run.retrieval is None:
        return
    trainer, values = run.trainer, run.retrieval(run.trainer.network)
    run.log.write(step, "retrieval", values)
    log.info("step %d  retrieval  %s", step, format_values(values))
    if values["mAP"] > float(trainer.best.numpy()):
        trainer.best.assign(values["mAP"])
        run.checkpoints.save_best()
