"""The checkpoints of a run: the latest ones and the best one."""

import pathlib
import shutil
import tempfile

import tensorflow as tf

from dolg_tf.modeling.model_dir import VALUE
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

_LATER = ("local_threshold",)  # sections that checkpoints of before them lack
_BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter" + VALUE)


class Checkpoints:
    """Saves and restores step, network, class head and optimizer.

    Args:
      logdir: run directory.
      state: variables, or dicts of them, by name, all built; `step` is an int64 variable.
      keep: how many of the latest to keep.
      chief: whether this worker is the chief, which alone writes to the run directory. The others
        must save too, since reading a mirrored variable is a collective operation; they save to a
        temporary folder.
    """

    def __init__(self, logdir: pathlib.Path, state: dict, keep: int, chief: bool):
        self._state, self._keep, self._chief = state, keep, chief
        self._passed_over = False  # whether the latest checkpoint was skipped on purpose
        self._checkpoint = tf.train.Checkpoint(**state)
        self._source = logdir / "checkpoints"
        for name in ("checkpoints", "best"):
            _listed(logdir / name)  # refuses a damaged list before anything overwrites it
            for path in (logdir / name).glob("ckpt-*_temp") if chief else ():
                shutil.rmtree(path)  # of a process that was killed while it saved
        if not chief:
            self._scratch = tempfile.TemporaryDirectory(prefix="dolg_worker_")
            logdir = pathlib.Path(self._scratch.name)

        def manager(name, keep):
            return tf.train.CheckpointManager(self._checkpoint, str(logdir / name), keep)

        self._latest, self._best = manager("checkpoints", keep), manager("best", 1)

    def save(self) -> None:
        """Saves the state of this step.

        Raises:
          OSError: if it cannot be written; the earlier checkpoints remain intact.
        """
        if self._passed_over:
            self._passed_over = False
            if self._chief:  # not when restoring, while other workers may be reading the list
                _forget_latest(self._source)
                self._latest = tf.train.CheckpointManager(
                    self._checkpoint, str(self._source), self._keep
                )
        self._save(self._latest)

    def save_best(self) -> None:
        """Saves the state of this step as the best one, replacing the one before."""
        self._save(self._best)

    def _save(self, manager: tf.train.CheckpointManager) -> None:
        step = int(self._state["step"].numpy())
        folder = pathlib.Path(manager.directory)
        try:
            manager.save(checkpoint_number=step)
            for path in folder.glob(f"ckpt-{step}.*") if self._chief else ():
                workshop.sync(path)
            workshop.sync_folder(folder)
        except (tf.errors.OpError, OSError) as error:
            for path in folder.glob(f"ckpt-{step}[._]*"):  # what was written of it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            reason = str(error).strip().splitlines()[0].split("}} ")[-1]
            raise OSError(
                f"{folder}: step {step} cannot be saved ({reason}); free some space, and the same "
                "command continues from the latest checkpoint, which is intact"
            ) from error

    def restore(self, which: str = "latest") -> bool:
        """Restores a checkpoint of the run directory, and returns whether there was one.

        Args:
          which: "latest", or "previous" for the one before it.

        Raises:
          InputError: if it is damaged, or does not hold exactly the state of this run.
        """
        folder = self._source
        paths = _listed(folder)
        if which == "previous":
            if len(paths) < 2:
                raise InputError(f"{folder} has no checkpoint before the latest one")
            paths.pop()
        if not paths:
            return False
        remedy = "give another --logdir"
        if which == "latest" and len(paths) > 1:
            remedy += ", or --restore=previous to continue from the checkpoint before it"
        try:
            stored = tf.train.load_checkpoint(paths[-1]).get_variable_to_shape_map()
            state = {
                section: value
                for section, value in self._state.items()
                if section not in _LATER or any(name.startswith(f"{section}/") for name in stored)
            }
            _compare(state, stored, paths[-1])
            checkpoint = self._checkpoint
            if len(state) < len(self._state):
                checkpoint = tf.train.Checkpoint(**state)
            checkpoint.restore(paths[-1]).assert_existing_objects_matched()
        except (tf.errors.OpError, ValueError, LookupError, AssertionError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{paths[-1]} is damaged ({reason}); {remedy}") from error
        self._passed_over = which == "previous"
        return True


def _compare(state: dict, stored: dict, path: str) -> None:
    """Compares names and shapes of a checkpoint with this run's state.

    Raises:
      InputError: naming the first tensor that differs.
    """
    needed = {}
    for section, value in state.items():
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for name, variable in entries:
            key = section if name is None else f"{section}/{_escaped(name)}"
            needed[key + VALUE] = variable.shape.as_list()
    stored = {name: shape for name, shape in stored.items() if name not in _BOOKKEEPING}
    for name in sorted(needed.keys() | stored.keys()):
        was, now = stored.get(name), needed.get(name)
        if was != now:
            raise InputError(
                f"{path} does not fit this run: {name.removesuffix(VALUE)} is "
                f"{_shape(was)} in the checkpoint, {_shape(now)} in this run; give another "
                "--logdir, or the flags of the run's flags.txt"
            )


def _listed(folder: pathlib.Path) -> list[str]:
    """Returns the paths of a folder's checkpoints, the latest last.

    Raises:
      InputError: if their list exists but cannot be read, since a fresh start would be wrong.
    """
    try:
        known = tf.train.get_checkpoint_state(str(folder))
    except ValueError:
        known = None
    if known is not None:
        return list(known.all_model_checkpoint_paths) or [known.model_checkpoint_path]
    if (folder / "checkpoint").exists():
        raise InputError(
            f"{folder / 'checkpoint'}, which lists the checkpoints, is damaged; replace it by a "
            "line 'model_checkpoint_path: \"ckpt-N\"', with the highest step there as N, or give "
            "another --logdir"
        )
    return []


def _forget_latest(folder: pathlib.Path) -> None:
    """Removes the latest checkpoint from a folder's list; its files stay."""
    known = tf.train.get_checkpoint_state(str(folder))
    names = [pathlib.Path(path).name for path in known.all_model_checkpoint_paths[:-1]]
    known.model_checkpoint_path = names[-1]
    known.all_model_checkpoint_paths[:] = names
    known.all_model_checkpoint_timestamps[:] = known.all_model_checkpoint_timestamps[:-1]
    files.write_text(folder / "checkpoint", str(known))


def _escaped(name: str) -> str:
    """Returns a dict key as `tf.train.Checkpoint` writes it."""
    return name.replace(".", "..").replace("/", ".S")


def _shape(shape) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"
