"""The written record of a run: config.json, flags.txt, metrics.jsonl and TensorBoard."""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib

import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.files.config_file import FORMAT_VERSION, has_begun, name_of_network
from dolg_tf.stage import checksums, files
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig

log = logging.getLogger(__name__)

# Flags that may differ between two starts of the same run.
_MAY_CHANGE = (
    "logdir",  # a folder has many names, and may be moved
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "validate_every",
    "max_steps",
    "restore",
    "profile_steps",
    "retrieval_image_root",
    "worker_timeout",
)
# Flags that may be changed to rescue a run from a bad record, a loss that is not finite, or a
# device that is too small; the log mentions them.
_MAY_BE_MENDED = (
    "skip_bad_records",
    "initial_lr",
    "backbone_lr",
    "clip_norm",
    "accumulate",
    "jit_compile",
    "recompute",
    "train_file_pattern",
    "validation_file_pattern",
)


def lock_run(logdir: pathlib.Path):
    """Keeps other processes from training in the run directory while the returned file is open.

    Raises:
      InputError: if another process is training there.
    """
    taken = f"another process is training in {logdir}; wait for it, or give another --logdir"
    return files.lock(logdir / ".lock", taken)


def check_run(
    model: DolgConfig, data: DataConfig, training: TrainingConfig, landmarks: str | None
) -> None:
    """Checks that the run directory does not hold another run.

    Args:
      model, data, training: the recipe.
      landmarks: `landmarks_sha256` of the training records.

    Raises:
      InputError: if the run there had other landmarks, or another value of a flag, which it names.
    """
    logdir = pathlib.Path(training.logdir)
    if not has_begun(logdir):
        return
    source = logdir / "config.json"
    before, _ = checksums.read_json(source, FORMAT_VERSION, "give another --logdir")
    trained_on = before.get("landmarks_sha256")
    if trained_on and landmarks and trained_on != landmarks:
        raise InputError(
            f"{logdir} was trained on other landmarks than those in relabeling.csv beside "
            f"{data.train_file_pattern!r}; give another --logdir"
        )
    # An option that did not exist when the run began had its default value.
    stored = _sections(
        *(
            configs.from_dict(type(ours), before.get(section, {}), str(source))
            for section, ours in (("model", model), ("data", data), ("training", training))
        )
    )
    for section, values in _sections(model, data, training).items():
        for name, value in values.items():
            was = stored[section][name]
            if was == value or name in _MAY_CHANGE:
                continue
            # The optimizer has no slots for a backbone that is not trained.
            mendable = name in _MAY_BE_MENDED and (name != "backbone_lr" or (was and value))
            if mendable:
                log.warning("--%s was %s and is %s from now on", name, was, value)
            else:
                raise InputError(
                    f"{logdir} holds a run with --{name}={was}, not {value}; give another "
                    "--logdir, or remove that run"
                )


def write_run(
    model: DolgConfig, data: DataConfig, training: TrainingConfig, landmarks: str | None
) -> None:
    """Writes config.json and flags.txt of a run that starts or continues.

    Args:
      model, data, training: the recipe.
      landmarks: `landmarks_sha256` of the training records.
    """
    logdir = pathlib.Path(training.logdir)
    training = dataclasses.replace(training, restore="latest")  # "previous" was for one start
    values = {
        "format_version": FORMAT_VERSION,
        **name_of_network(model),
        **_sections(model, data, training),
        "landmarks_sha256": landmarks,
    }
    checksums.write_json(logdir / "config.json", values, {})
    files.write_text(logdir / "flags.txt", configs.to_flagfile(model, data, training))


def _sections(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> dict:
    sections = {"model": model, "data": data, "training": training}
    values = {name: configs.to_dict(config) for name, config in sections.items()}
    return json.loads(json.dumps(values))  # tuples become lists, as in the file


class RunLog:
    """Writes scalars to metrics.jsonl and TensorBoard.

    Args:
      logdir: run directory.
      step: where the run continues; later entries, of an interrupted run, are removed.
      chief: whether this worker is the chief, which alone writes.
    """

    def __init__(self, logdir: pathlib.Path, step: int, chief: bool):
        self._path, self._writer = logdir / "metrics.jsonl", None
        if not chief:
            return
        path = self._path
        if path.exists():
            lines = path.read_text(errors="replace").splitlines(keepends=True)
            files.write_text(path, "".join(line for line in lines if _step_of(line) <= step))
        self._writer = tf.summary.create_file_writer(str(logdir / "tensorboard"))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes the scalars of one step of "train", "validation" or "retrieval".

        Raises:
          OSError: if they cannot be written.
        """
        if self._writer is None:
            return
        rows = [
            {"step": step, "split": split, "name": name, "value": float(value)}
            for name, value in values.items()
        ]
        with self._writing(), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        with self._writing(), self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{split}/{name}", float(value), step=step)
            self._writer.flush()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"the log in {self._path.parent} cannot be written ({reason}); free some space, "
                "and the same command continues from the last checkpoint"
            ) from error

    def write_pictures(self, step: int, name: str, pictures) -> None:
        """Writes uint8 RGB pictures (B, H, W, 3) to TensorBoard."""
        if self._writer is None:
            return
        with self._writing(), self._writer.as_default():
            tf.summary.image(name, pictures, step=step, max_outputs=len(pictures))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._writing():
                self._writer.close()


def _step_of(line: str) -> float:
    """Returns the step of a line of metrics.jsonl; infinity if the line is incomplete."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):  # damaged
        return math.inf
