"""What a run leaves in writing: its configuration, metrics.jsonl, TensorBoard, the console."""

import json
import logging
import pathlib

import tensorflow as tf

from dolg_tf import config as configs
from dolg_tf import files
from dolg_tf.config import InputError
from dolg_tf.recipe import DataConfig, DolgConfig, TrainingConfig

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# What may differ between two starts of one run without making it another run.
_MAY_CHANGE = (
    "logdir",  # the same folder has many names, and may be moved
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "validate_every",
    "max_steps",
)


def check_run(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> None:
    """Makes sure that the run directory holds no other run.

    Raises:
      InputError: naming the first flag that differs from the run that is there.
    """
    logdir = pathlib.Path(training.logdir)
    if not (logdir / "config.json").exists():
        return
    before = files.read_json(logdir / "config.json", FORMAT_VERSION)
    for section, values in _sections(model, data, training).items():
        for name, value in values.items():
            was = before.get(section, {}).get(name)
            if was != value and name not in _MAY_CHANGE:
                raise InputError(
                    f"{logdir} holds a run with --{name}={was}, not {value}; give another "
                    "--logdir, or remove that run"
                )


def write_run(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> None:
    """Writes config.json and flags.txt of a run that starts or goes on."""
    logdir = pathlib.Path(training.logdir)
    values = {"format_version": FORMAT_VERSION, **_sections(model, data, training)}
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
        self._file = self._writer = None
        if not chief:
            return
        path = logdir / "metrics.jsonl"
        if path.exists():
            # The last line may be half written.
            lines = [
                line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
            ]
            files.write_text(path, "".join(x for x in lines if json.loads(x)["step"] <= step))
        self._file = path.open("a", encoding="utf-8")
        self._writer = tf.summary.create_file_writer(str(logdir / "tensorboard"))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes the scalars of one step of "train" or "validation"."""
        if self._file is None:
            return
        for name, value in values.items():
            row = {"step": step, "split": split, "name": name, "value": float(value)}
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{split}/{name}", float(value), step=step)
        self._writer.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._writer.close()
