"""An index of scenes, each in one colour, and photos to search for in it."""

import io
import pathlib

import numpy as np
import stand_in_saved_model
from PIL import Image

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import stages
from dolg_tf.retrieval.index.stages import BuildConfig

COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 30),
    "violet": (160, 40, 220),
    "a/cyan": (30, 210, 220),
}


def scene(*names: str, width: int = 96, height: int = 64) -> np.ndarray:
    """Stripes of the colours, from left to right, uint8 RGB."""
    stripes = [np.full((height, width // len(names), 3), COLOURS[name], np.uint8) for name in names]
    return np.concatenate(stripes, axis=1)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def descriptor(image: np.ndarray) -> np.ndarray:
    """The stand-in model's descriptor, for sides that are multiples of 16 pixels."""
    row = image.astype(np.float64).mean((0, 1)) / 127.5 - 1
    return (row / np.linalg.norm(row)).astype(np.float32)


def make(folder: pathlib.Path, **about) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the model and the index, with photos in `folder`/photos; returns both paths."""
    rows = []
    for name in COLOURS:
        file = folder / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(name)).save(file)
        rows.append(descriptor(scene(name)))
    meta = {
        "image_root": str(folder / "photos"),
        "model_hash": "abc",
        "scales": list(stand_in_saved_model.SCALES),
        "crop": False,
        "max_side": 0,
        "whitening": None,
        "bad": [],
    }
    kept, built = folder / "set", folder / "index"
    descriptors.write(kept, DescriptorSet(tuple(COLOURS), np.stack(rows), meta | about))
    stages.build(BuildConfig(descriptors=str(kept), output=str(built)))
    return stand_in_saved_model.save(folder / "model"), built
