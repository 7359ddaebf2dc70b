"""Checkpoints of a run: the latest ones and the best one."""

import pathlib
import tempfile

import tensorflow as tf

from dolg_tf.config import InputError


class Checkpoints:
    """Saves and restores step, network, class head and optimizer.

    Args:
      logdir: run directory.
      state: names to trackable objects, all of them built; `step` is an int64 variable.
      keep: how many of the latest are kept.
      chief: only the chief writes to the run directory. The others must save too, since reading
        a mirrored variable takes part in a collective, and do so to a temporary folder.
    """

    def __init__(self, logdir: pathlib.Path, state: dict, keep: int, chief: bool):
        self._step = state["step"]
        self._checkpoint = tf.train.Checkpoint(**state)
        if not chief:
            self._scratch = tempfile.TemporaryDirectory(prefix="dolg_worker_")
            logdir = pathlib.Path(self._scratch.name)

        def manager(name, keep):
            return tf.train.CheckpointManager(self._checkpoint, str(logdir / name), keep)

        self._latest, self._best = manager("checkpoints", keep), manager("best", 1)

    def save(self) -> None:
        self._latest.save(checkpoint_number=int(self._step.numpy()))

    def save_best(self) -> None:
        self._best.save(checkpoint_number=int(self._step.numpy()))

    def restore(self, logdir: pathlib.Path) -> bool:
        """Restores the latest checkpoint of a run directory; returns whether there was one.

        Raises:
          InputError: when it does not hold exactly the state of this run.
        """
        found = tf.train.latest_checkpoint(str(logdir / "checkpoints"))
        if found is None:
            return False
        try:
            status = self._checkpoint.restore(found)
            status.assert_existing_objects_matched().assert_consumed()
        except (ValueError, AssertionError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{found} does not fit this run ({reason}); give another --logdir, or the flags "
                f"of {logdir / 'flags.txt'}"
            ) from error
        return True
