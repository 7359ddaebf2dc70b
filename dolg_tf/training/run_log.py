"""What a run leaves in writing: its configuration, metrics.jsonl, TensorBoard, the console."""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib

import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.model_dir import FORMAT_VERSION
from dolg_tf.stage import config as configs
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig

log = logging.getLogger(__name__)

# What may differ between two starts of one run without making it another run.
_MAY_CHANGE = (
    "logdir",  # the same folder has many names, and may be moved
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "validate_every",
    "max_steps",
    "restore",
    "profile_steps",
    "retrieval_image_root",
)
# What may be changed to save a run that met a bad record, a loss that is not finite, or a device
# that is too small; it is said aloud.
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
      InputError: when another process has it.
    """
    taken = f"another process is training in {logdir}; wait for it, or give another --logdir"
    return files.lock(logdir / ".lock", taken)


def has_begun(logdir: files.Path) -> bool:
    """Returns whether the folder holds a run to go on with; one without checkpoint is none."""
    logdir = pathlib.Path(logdir)
    saved = (logdir / "checkpoints" / "checkpoint").exists()
    return saved and (logdir / "config.json").exists()


def check_run(
    model: DolgConfig, data: DataConfig, training: TrainingConfig, landmarks: str | None
) -> None:
    """Makes sure that the run directory holds no other run.

    Args:
      model, data, training: the recipe.
      landmarks: `landmarks_sha256` of the training records.

    Raises:
      InputError: naming the first flag that differs from the run that is there, or when its
        records had other landmarks.
    """
    logdir = pathlib.Path(training.logdir)
    if not has_begun(logdir):
        return
    before = files.read_json(logdir / "config.json", FORMAT_VERSION)
    trained_on = before.get("landmarks_sha256")
    if trained_on and landmarks and trained_on != landmarks:
        raise InputError(
            f"{logdir} was trained on other landmarks than relabeling.csv beside "
            f"{data.train_file_pattern!r} lists; give another --logdir"
        )
    # An option that the release of that run did not have stood at its default.
    stored = _sections(
        *(
            configs.from_dict(type(ours), before.get(section, {}), str(logdir / "config.json"))
            for section, ours in (("model", model), ("data", data), ("training", training))
        )
    )
    for section, values in _sections(model, data, training).items():
        for name, value in values.items():
            was = stored[section][name]
            if was == value or name in _MAY_CHANGE:
                continue
            # A backbone that is not trained has no place in the optimizer.
            mendable = name in _MAY_BE_MENDED and (name != "backbone_lr" or (was and value))
            if mendable:
                log.warning("--%s was %s, and is %s from here on", name, was, value)
            else:
                raise InputError(
                    f"{logdir} holds a run with --{name}={was}, not {value}; give another "
                    "--logdir, or remove that run"
                )


def write_run(
    model: DolgConfig, data: DataConfig, training: TrainingConfig, landmarks: str | None
) -> None:
    """Writes config.json and flags.txt of a run that starts or goes on.

    Args:
      model, data, training: the recipe.
      landmarks: `landmarks_sha256` of the training records.
    """
    logdir = pathlib.Path(training.logdir)
    training = dataclasses.replace(training, restore="latest")  # "previous" was meant once
    values = {
        "format_version": FORMAT_VERSION,
        **_sections(model, data, training),
        "landmarks_sha256": landmarks,
    }
    files.write_json(logdir / "config.json", values)
    files.write_text(logdir / "flags.txt", configs.to_flagfile(model, data, training))


def _sections(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> dict:
    sections = {"model": model, "data": data, "training": training}
    values = {name: configs.to_dict(config) for name, config in sections.items()}
    return json.loads(json.dumps(values))  # tuples become lists, as in the file


class RunLog:
    """Writes scalars to metrics.jsonl and TensorBoard.

    Args:
      logdir: run directory.
      step: where the run goes on; what was logged later, by an interrupted run, is dropped.
      chief: only the chief writes.
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
          OSError: when it cannot be written.
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
                f"the log in {self._path.parent} cannot be written ({reason}); make room, and the "
                "same command goes on from the last checkpoint"
            ) from error

    def write_pictures(self, step: int, name: str, pictures) -> None:
        """Shows uint8 RGB pictures (B, H, W, 3) in TensorBoard."""
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
    """Returns the step of a line of metrics.jsonl; infinity of one that was not written whole."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf
