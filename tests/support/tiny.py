"""A network, records and a recipe so small that a step takes milliseconds."""

import io
import json

import numpy as np
from PIL import Image

from dolg_tf.data.config import DataConfig
from dolg_tf.data.records import tfrecord
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.training.config import TrainingConfig

MODEL = DolgConfig(backbone="resnet17_small", dilations=(1,), descriptor_size=16)
CLASSES = 4


def _example(label, number):
    """A photo of stripes whose direction and width depend on the class."""
    y, x = np.mgrid[0:48, 0:64]
    wave = [np.sin(x / 2), np.sin(y / 2), np.sin((x + y) / 5), np.sin(x / 6)][label]
    noise = np.random.default_rng([label, number]).normal(0, 20, (48, 64, 3))
    pixels = np.clip(128 + 80 * wave[..., None] + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return tfrecord.encode(buffer.getvalue(), f"{label}_{number}", 48, 64, label)


def write_records(folder):
    """Writes 32 training and 12 validation photos of 4 classes."""
    for split, numbers in (("train", range(8)), ("validation", range(100, 103))):
        examples = [_example(label, n) for n in numbers for label in range(CLASSES)]
        tfrecord.write_shard(folder / f"{split}-00000-of-00001", examples)
    return DataConfig(
        train_file_pattern=str(folder / "train-*"),
        validation_file_pattern=str(folder / "validation-*"),
        num_classes=CLASSES,
        image_size=32,
        augment_flip=False,
        crop_area_min=0.5,
    )


def recipe(logdir, **changes):
    values = {
        "logdir": str(logdir),
        "batch_size": 8,
        "epochs": 3,
        "initial_lr": 0.02,
        "warmup_epochs": 0.0,
        "scale": 16.0,
        "log_every": 2,
        "checkpoint_every": 3,
    }
    return TrainingConfig(**{**values, **changes})


def metrics(logdir, split="train", name="loss"):
    """Returns {step: value} of what a run logged."""
    rows = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["value"] for r in rows if (r["split"], r["name"]) == (split, name)}
