"""Reports on the steps of a run, and its end if numbers are not finite."""

import logging
import pathlib
import time

import numpy as np
import tensorflow as tf

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.stage import files
from dolg_tf.stage.progress import format_seconds
from dolg_tf.training.run_log import RunLog
from dolg_tf.training.trainer import GRADIENT_NORM, HITS, LOSS, PHOTOS, Trainer

log = logging.getLogger(__name__)

_STARVED = 0.5  # share of time spent waiting for photos from which the log mentions it
_SHOWN = (
    "loss",
    "accuracy",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
    "bad_photos",
    "skipped_steps",
)


class Reports:
    """Collects the results of steps, and reports their means.

    Args:
      trainer, photos, run_log: of the run.
      last: its last step.
    """

    def __init__(self, trainer: Trainer, photos: TrainingInput, run_log: RunLog, last: int):
        self._trainer, self._photos, self._log, self._last = trainer, photos, run_log, last
        self.results = []  # of the steps since the last report
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time until now from the next rate."""
        self._timed, self._waited, self._start = 0, 0.0, time.monotonic()

    def add(self, result: tf.Tensor, waited: float) -> None:
        """Adds the result of a step, and the seconds that it waited for photos."""
        self.results.append(result)
        self._timed += 1
        self._waited += waited

    def report(self, step: int) -> None:
        """Logs the means since the last report.

        Raises:
          FloatingPointError: if loss, gradient or weights are not finite; the photos of that step
            have been written to a file.
        """
        results = np.stack([result.numpy() for result in self.results])
        watched = self._trainer.watched()
        self._refuse_nonfinite(step, results, watched)
        norms = results[np.isfinite(results[:, GRADIENT_NORM]), GRADIENT_NORM]
        seconds = time.monotonic() - self._start
        batch_size, photos = self._trainer.training.batch_size, results[:, PHOTOS].sum()
        values = {
            "loss": results[:, LOSS].mean(),
            "accuracy": results[:, HITS].sum() / max(photos, 1),
            "learning_rate": float(self._trainer.optimizer.learning_rate),
            **watched,
        }
        if norms.size:  # otherwise float16 skipped all these steps
            values["gradient_norm"] = norms.mean()
        if norms.size < len(results):
            values["skipped_steps"] = len(results) - norms.size
        if photos < len(results) * batch_size:
            values["bad_photos"] = len(results) * batch_size - photos
            for i in np.flatnonzero(results[:, PHOTOS] < batch_size):
                faults = self._photos.faults_of_step(step - len(results) + int(i))
                for fault in faults or ["photos that could not be read at that time"]:
                    log.warning("left out: %s", fault)
        if self._timed:
            values["images_per_second"] = self._timed * batch_size / seconds
            values["input_wait"] = self._waited / seconds
        self._log.write(step, "train", values)
        text = format_values({name: values[name] for name in _SHOWN if name in values})
        if self._timed:
            left = (self._last - step) * seconds / self._timed
            text += f"  ETA {format_seconds(left)}"
            if values["input_wait"] > _STARVED:
                text += f"  {100 * values['input_wait']:.0f} % of the time waiting for photos"
        log.info("step %d/%d  %s", step, self._last, text)
        self.results = []
        self.restart_clock()

    def _refuse_nonfinite(self, step: int, results: np.ndarray, watched: dict) -> None:
        weight_norm, scale = watched["weight_norm"], watched.get("loss_scale", 1.0)
        if scale < 1:
            raise FloatingPointError(
                f"step {step}: float16 gradients are not finite even with a loss scale of {scale}; "
                "use --precision=bfloat16 or float32 in another --logdir, with --init_from this one"
            )
        losses, norms = results[:, LOSS], results[:, GRADIENT_NORM]
        bad = ~np.isfinite(losses)
        if self._trainer.training.precision != "float16":  # which skips such a step
            bad |= ~np.isfinite(norms)
        # Weights moved too far would show in the next loss: too late for this step's checkpoint.
        bad[-1] |= not np.isfinite(weight_norm)
        for i in np.flatnonzero(bad)[:1]:
            first = step - len(results) + 1 + int(i)
            what, value = next(
                (what, value)
                for what, value in (
                    ("loss", losses[i]),
                    ("norm of the gradient", norms[i]),
                    ("norm of the weights", weight_norm),
                )
                if not np.isfinite(value)
            )
            path = pathlib.Path(self._trainer.training.logdir) / f"bad_step_{first}.json"
            ids = self._photos.ids_of_step(first - 1)
            files.write_json(path, {"step": first, what: str(value), "ids": ids})
            raise FloatingPointError(
                f"the {what} is {value} at step {first}; its photos are listed in {path}. Lower "
                "--initial_lr or give --clip_norm; the last checkpoint is intact"
            )


def format_values(values: dict[str, float]) -> str:
    """Returns "name value  name value"."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
