"""A small GLDv2 on disk, for the tests of the records builder."""

import collections
import io
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

from dolg_tf.data.records import tfrecord
from dolg_tf.data.records.build import RecordsConfig


def jpeg(number, mode="RGB", kind="JPEG", **options):
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((30, 24)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def name_of(number):
    return f"{number * 7919:016x}"[::-1]


def put(root, name, data):
    path = root / name[0] / name[1] / name[2] / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_gldv2(folder):
    """Writes landmarks 900, 70, 8 with 10, 5, 1 photos."""
    labels = [900] * 10 + [70] * 5 + [8]
    rows, clean = [], collections.defaultdict(list)
    for number, landmark in enumerate(labels):
        name = name_of(number)
        put(folder / "train", name, jpeg(number))
        rows.append(f"{name},http://x/y,{landmark}")
        clean[landmark].append(name)
    (folder / "train.csv").write_text("\n".join(["id,url,landmark_id", *rows]) + "\n")
    lines = [f"{landmark},{' '.join(names)}" for landmark, names in clean.items()]
    (folder / "train_clean.csv").write_text("\n".join(["landmark_id,images", *lines]) + "\n")


def settings(folder, **changes):
    values = {
        "images_dir": str(folder / "train"),
        "train_csv": str(folder / "train.csv"),
        "train_clean_csv": str(folder / "train_clean.csv"),
        "output_dir": str(folder / "records"),
        "num_shards": 3,
        "processes": 1,
    }
    return RecordsConfig(**values | changes)


def read(folder, split):
    """Returns {id: (label, JPEG bytes)} as TensorFlow reads the records."""
    paths = sorted(str(path) for path in pathlib.Path(folder).glob(f"{split}-*"))
    photos = [tfrecord.parse(data) for data in tf.data.TFRecordDataset(paths)]
    found = {p["id"].numpy().decode(): (int(p["label"]), p["encoded"].numpy()) for p in photos}
    assert len(found) == len(photos)
    return found


def files_of(folder):
    """Returns {name: bytes} of the finished records and lists of a folder."""
    return {
        path.name: path.read_bytes()
        for path in pathlib.Path(folder).iterdir()
        if path.name != "records.json"  # it names the source folders
    }
