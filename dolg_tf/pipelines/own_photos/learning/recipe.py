"""The recipe `finetune_small` over labelled photos, each step a process of its own.

What a step has finished is kept, so that the same command continues after an interruption.
"""

import contextlib
import io
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.retrieval.extract.ahead import decode_ahead
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.serving import ready
from dolg_tf.stage import files, progress, signals, workshop
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

RECIPE = "finetune_small"
_QUALITY = 95  # of the JPEGs that are trained on
_SHARDS = 4


def train(
    folder: pathlib.Path,
    photos: Sequence[tuple[File, str]],
    weights: str,
    max_steps: int = 0,
) -> pathlib.Path:
    """Trains on labelled photos; returns the SavedModel.

    Args:
      folder: for the SavedModel, and for what is needed on the way, which is deleted at the end.
      photos: with their landmarks.
      weights: name of an EfficientNet-Lite whose weights it starts from.
      max_steps: stops early; 0: as the recipe says.

    Raises:
      SystemExit: with the exit code of a step that failed, which has said why.
    """
    model, work = folder / "model", folder / "work"
    if workshop.recover(model / "saved_model.pb"):
        return model
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "labels.csv").is_file():
        _shrink(work, photos)
    records, run = work / "records", work / "run"
    if not (records / "records.json").is_file():
        _step(
            "records",
            labels_csv=work / "labels.csv",
            output_dir=records,
            num_shards=_SHARDS,
            validation_fraction=0,
        )
    _step(
        "train",
        recipe=RECIPE,
        train_file_pattern=records / "train-*",
        validation_file_pattern="",
        logdir=run,
        backbone=weights,
        backbone_weights=weights,
        **({"max_steps": max_steps} if max_steps else {}),
    )
    scales = ",".join(map(str, ready.SCALES))
    _step("export", model_dir=run, weights="ema", scales=scales, output=model, overwrite=True)
    shutil.rmtree(work)
    return model


def _shrink(work: pathlib.Path, photos: Sequence[tuple[File, str]]) -> None:
    """Writes the photos as they are described, upright and small, and a labels.csv of them."""
    listed = [Photo(photo.id, photo.path, turn=True) for photo, _ in photos]
    rows = []
    stream = decode_ahead(listed, Preparation(ready.SIDE, "crop"))
    with contextlib.closing(stream):
        for (number, (_, landmark)), image in zip(
            enumerate(photos), progress.track(stream, len(photos), "shrink", "photos"), strict=True
        ):
            if isinstance(image, str):
                log.warning("not trained on: %s", image)
                continue
            name = f"photos/{number:06d}.jpg"
            (work / name).parent.mkdir(exist_ok=True)
            files.write_bytes(work / name, _jpeg(image))
            rows.append((name, landmark))
    write_table(work / "labels.csv", ("path", "landmark"), rows)


def _jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    found = io.BytesIO()
    Image.fromarray(image).save(found, "JPEG", quality=_QUALITY)
    return found.getvalue()


def _step(name: str, **flags) -> None:
    """Runs a command of this package; Ctrl-C and SIGTERM let it save, and it ends with us."""
    words = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]
    _run([sys.executable, "-m", "dolg_tf", name, *words])


def _run(command: Iterable[str]) -> None:
    child = subprocess.Popen([*command], env={**os.environ, signals.PARENT: str(os.getpid())})
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal interrupted it too: it is saving
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)  # the child has said why
