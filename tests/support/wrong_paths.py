"""Runs each command with one wrong flag after the other, where TensorFlow cannot be imported.

Prints JSON: {"command flag=value": [what came of it, seconds of CPU]}.
"""

import contextlib
import importlib
import io
import itertools
import json
import logging
import os
import pathlib
import pickle
import sys
import time
import typing

import asmk_images
import local_sets
import numpy as np
import tiny
from PIL import Image
from set_meta import META

from dolg_tf.cli import COMMANDS
from dolg_tf.modeling.files import config_file
from dolg_tf.retrieval import datum_io, descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import stages
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.whitening import delf
from dolg_tf.runtime import export_files, whitening
from dolg_tf.stage import checksums, command
from dolg_tf.stage import config as configs

# All paths that a command takes, right, and the wrong values of each. "taken" is an output that is
# there; the other names are those of `make_world`.
_NETWORK = ["nowhere", "saved_model", "set", "text.txt"]
_MODEL = ["nowhere", "model", "set", "text.txt"]
_SET = ["nowhere", "model", "index", "text.txt"]
_INDEX = ["nowhere", "set", "text.txt"]
_PHOTOS = ["nowhere", "empty", "text.txt"]
_TRUTH = ["nowhere.pkl", "text.txt", "photos"]
_TABLE = ["nowhere.csv", "photos"]
_EXTRACT = {"images": ("photos", _PHOTOS), "output": ("new", ["text.txt", "index"])}
_KAGGLE = {
    "task": ("recognition", ["rekognition"]),
    "query_descriptors": ("set", _SET),
    "index_descriptors": ("set", _SET),
    "labels_csv": ("labels.csv", _TABLE),
}
TABLE = {
    "search": {
        "": ("photos", ["nowhere", "empty", "text.txt"]),  # a word without a flag
        "query": ("photos/p0.jpg", ["nowhere.jpg", "empty"]),
        "model": ("saved_model", ["efficientnet_lit0", "nowhere/model", "model"]),
        "kept": ("new", ["text.txt", "photos"]),
        "output": ("new.csv", []),
    },
    "quickstart": {
        "train_flagfile": ("quickstart", ["quickstrat"]),
        "photos": ("", ["nowhere"]),
        "output": ("new", ["text.txt"]),
    },
    "draw": {"output": ("new", ["text.txt"])},
    "records": {"labels_csv": ("labels.csv", _TABLE), "output_dir": ("new", ["text.txt"])},
    "ground-truth": {
        "labels_csv": ("photos/labels.csv", _TABLE),
        "output": ("new", ["text.txt"]),
    },
    "verify": {"path": ("model", ["nowhere", "text.txt", "empty"])},
    "convert": {
        "input": ("weights.npz", ["nowhere.pyth", "text.txt", "photos"]),
        "output": ("new", ["text.txt", "photos"]),
        "reference": ("", ["nowhere.npz", "text.txt"]),
    },
    "convert --to=official": {"input": ("model", _NETWORK), "output": ("new.pyth", ["new.txt"])},
    "train": {
        "recipe": ("quickstart", ["quickstrat"]),  # first: later flags override it
        "train_file_pattern": ("records/train-*", ["nowhere-*", "text.txt", "photos"]),
        "validation_file_pattern": ("records/validation-*", ["nowhere-*", "text.txt"]),
        "backbone": ("resnet17_small", ["resnt50"]),
        "backbone_weights": ("none", ["resnt_50_imagenet", "nowhere.pth", "photos"]),
        "logdir": ("new", ["text.txt"]),
        "retrieval_ground_truth": ("gnd_few.pkl", _TRUTH),
        "retrieval_image_root": ("photos", ["nowhere", "empty"]),
    },
    "train --backbone=resnet17_small": {
        "train_file_pattern": ("records/train-*", []),
        "logdir": ("new", []),
        "init_from": ("model", [*_NETWORK, "run"]),
    },
    "train-how": {
        "recipe": ("how_r18", ["how_r19"]),
        "photos": ("places.csv", ["nowhere.csv", "text.txt", "photos"]),
        "image_root": ("", ["nowhere"]),
        "backbone_weights": ("none", ["resnt_50_imagenet", "nowhere.pth", "photos"]),
        "logdir": ("new", ["text.txt"]),
        "retrieval_ground_truth": ("gnd_few.pkl", _TRUTH),
        "retrieval_image_root": ("photos", ["nowhere", "empty"]),
    },
    "summary": {"model_dir": ("model", [*_NETWORK, "run"])},
    "export": {
        "model_dir": ("model", [*_NETWORK, "run"]),
        "output": ("new", ["text.txt", "saved_model"]),
        "whitening": ("whitening.npz", ["nowhere.npz", "text.txt"]),
        "report": ("", ["nowhere.json", "text.txt"]),
    },
    "export --mode=search --output=new": {
        "model_dir": ("model", []),
        "index": ("index", _INDEX),
        "labels_csv": ("", ["nowhere.csv", "text.txt"]),
    },
    "export --output=new": {
        "backbone_weights": ("efficientnet_lite0", ["efficientnet_lit0", "resnt_50_imagenet"])
    },
    "model-card": {
        "model_dir": ("model", _NETWORK),
        "output": ("new.md", ["text.txt"]),
        "report": ("", ["nowhere.json", "text.txt"]),
    },
    "extract": {"saved_model": ("saved_model", _MODEL), **_EXTRACT},
    "extract --local": {
        "saved_model": ("saved_model", []),
        "images": ("photos", []),
        "output": ("new", []),
        "local_reduction": ("whitening.npz", ["nowhere.npz", "text.txt"]),
    },
    "extract-beam": {"saved_model": ("saved_model", _MODEL), **_EXTRACT},
    "colour-histogram": _EXTRACT,
    "delf": {
        "input": ("set", ["nowhere", "text.txt", "empty"]),
        "local": ("set.local", ["nowhere", "index", "set", "text.txt"]),
        "output": ("new", ["text.txt"]),
    },
    "whiten fit": {
        "descriptors": ("set", _SET),
        "labels_csv": ("labels.csv", _TABLE),
        "output": ("new.npz", ["photos"]),
    },
    "whiten apply": {
        "descriptors": ("set", _SET),
        "whitening": ("whitening.npz", ["nowhere.npz", "text.txt"]),
        "output": ("new", ["text.txt"]),
    },
    "whiten import": {
        "datum": ("pca", ["nowhere", "empty", "text.txt"]),
        "variances": ("", ["nowhere.datum", "text.txt"]),
        "output": ("new.npz", ["photos"]),
    },
    "index build": {
        "descriptors": ("set", _SET),
        "local": ("set.local", ["nowhere", "set", "text.txt"]),
        "output": ("new", ["text.txt", "photos"]),
    },
    "index query": {
        "index": ("index", _INDEX),
        "saved_model": ("saved_model", _MODEL),
        "images": ("photos", ["nowhere", "empty"]),
        "output": ("new.csv", ["photos"]),
    },
    "index query --index=index": {
        "descriptors": ("set", _SET),
        "query_local": ("", ["nowhere"]),
        "output": ("new.csv", []),
    },
    "index add": {
        "index": ("index", _INDEX),
        "descriptors": ("set", _SET),
        "local": ("", ["nowhere", "set.local"]),  # the index has none
    },
    "index remove": {"index": ("index", _INDEX), "ids": ("ids.txt", ["nowhere.txt", "photos"])},
    "index push --engine=milvus --uri=x.db": {
        "index": ("index", _INDEX),
        "labels_csv": ("", ["nowhere.csv", "text.txt"]),
    },
    "index rebuild": {
        "index": ("index", _INDEX),
        "saved_model": ("saved_model", _MODEL),
        "image_root": ("", ["nowhere", "empty"]),
    },
    "asmk codebook": {
        "local": ("local", ["nowhere", "set", "text.txt"]),
        "output": ("new.npz", ["photos.npz"]),
    },
    "asmk build": {
        "local": ("local", ["nowhere", "set", "text.txt"]),
        "codebook": ("codebook.npz", ["nowhere.npz", "text.txt", "weights.npz"]),
        "output": ("new", ["text.txt", "photos"]),
        "variant": ("how", ["hwo"]),
        "regions": ("", ["nowhere.csv", "text.txt"]),
    },
    "asmk query": {
        "index": ("asmk", ["nowhere", "index", "text.txt"]),
        "local": ("local", ["nowhere", "set", "text.txt"]),
        "output": ("new", ["text.txt", "photos"]),
    },
    "calibrate": {
        "index_descriptors": ("set", _SET),
        "labels_csv": ("labels.csv", _TABLE),
        "index_local": ("", ["nowhere", "set", "text.txt"]),
        "output": ("new.json", ["photos"]),
    },
    "prepare-revisited": {
        "dataset": ("roxford5k", ["oxford6k"]),
        "downloads": ("empty", ["nowhere", "text.txt"]),
        "output": ("new", []),
    },
    "evaluate revisited --memory_gb=4": {
        "ground_truth": ("gnd_few.pkl", []),
        "scores": ("scores", ["nowhere", "set", "text.txt"]),
        "output": ("new.json", []),
    },
    "evaluate revisited": {
        "ground_truth": ("gnd_few.pkl", _TRUTH),
        "query_descriptors": ("set", _SET),
        "index_descriptors": ("set", _SET),
        "rerank": ("geometric", ["geometri"]),
        "max_residual": ("2%", ["two"]),
        "query_local": ("set.local", ["nowhere", "set", "text.txt"]),
        "index_local": ("set.local", ["nowhere", "set", "text.txt"]),
        "output": ("new.json", ["photos"]),
    },
    "evaluate gldv2": {
        **_KAGGLE,
        "solution": ("solution.csv", _TABLE),
        "output": ("new.json", ["photos"]),
    },
    "submit": {**_KAGGLE, "output": ("new.csv", ["photos"])},
    "report": {
        "run": ("run", ["nowhere", "text.txt", "empty"]),
        "output": ("new", ["text.txt"]),
    },
    "match": {
        "saved_model": ("saved_model", _MODEL),
        "photos": ("photos/p0.jpg,photos/p1.jpg", ["nowhere.jpg,photos/p1.jpg"]),
        "output": ("new.png", ["photos"]),
    },
    "demo": {"saved_model": ("saved_model", _MODEL), "index": ("index", _INDEX)},
}


def make_world(folder: pathlib.Path) -> None:
    """Writes one of each kind of thing, as far as can be seen without loading it."""
    (folder / "text.txt").write_text("hello\n")
    (folder / "ids.txt").write_text("p0\n")
    for name in ("empty", "records", "model", "run/checkpoints", "saved_model", "photos"):
        (folder / name).mkdir(parents=True)
    data = tiny.write_records(folder / "records")
    landmarks = "".join(f"{i},{i}\n" for i in range(tiny.CLASSES))
    (folder / "records/relabeling.csv").write_text(f"new_label,old_label\n{landmarks}")
    about = {"format_version": config_file.FORMAT_VERSION}
    model = configs.to_dict(tiny.MODEL)
    run = {"data": configs.to_dict(data), "training": configs.to_dict(tiny.recipe(folder / "run"))}
    # A run without checkpoint.
    checksums.write_json(folder / "run/config.json", about | {"model": model} | run, {})
    about |= {"preprocessing": model.pop("preprocessing"), "model": model, "provenance": {}}
    (folder / "model" / config_file.WEIGHTS).write_bytes(b"weights")
    sums = checksums.of_files(folder / "model", [config_file.WEIGHTS])
    checksums.write_json(folder / "model/config.json", about, sums)
    (folder / "saved_model/saved_model.pb").write_bytes(b"graph")
    (folder / "saved_model/assets.extra").mkdir()
    says = {"format_version": 1, "scales": [1.0], "weights_sha256": "abc", "whitening": None}
    local = {"kind": "map", "scales": [1.0], "threshold": 0.0, "reduction": None}
    says["local"] = local | {"dimensions": tiny.MODEL.descriptor_size}
    export_files.write_about(folder / "saved_model", says)
    rng, size = np.random.default_rng(0), tiny.MODEL.descriptor_size
    for i in range(6):
        pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/p{i}.jpg")
    splits = itertools.cycle(("train", "index", "query"))
    rows = "".join(f"p{i}.jpg,{i % 2},{next(splits)}\n" for i in range(6))
    for name in ("labels.csv", "photos/labels.csv"):
        (folder / name).write_text(f"path,landmark,split\n{rows}")
    pairs = "".join(f"photos/p{i}.jpg,{i % 2}\n" for i in range(6))
    (folder / "places.csv").write_text(f"path,landmark\n{pairs}")
    (folder / "solution.csv").write_text("id,landmarks,Usage\np0,1,Public\n")
    ids = tuple(f"p{i}" for i in range(6))
    found = rng.normal(size=(len(ids), size)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    meta = META | {"image_root": str(folder / "photos")}
    descriptors.write(folder / "set", DescriptorSet(ids, found, meta))
    photos = [(id_, local_sets.draw(rng, 9)) for id_ in ids]
    writing.write(folder / "set.local", photos, local_sets.LOCAL_META | meta)
    stages.build(stages.BuildConfig(descriptors=str(folder / "set"), output=str(folder / "index")))
    query = {"bbx": [0, 0, 40, 40], "easy": [2], "hard": [3], "junk": []}
    truth = {"imlist": list(ids), "qimlist": ["p0", "p1"], "gnd": [query] * 2}
    (folder / "gnd_few.pkl").write_bytes(pickle.dumps(truth, 2))
    mean, projection = np.zeros(size), np.eye(size)
    whitening.write_whitening(folder / "whitening.npz", mean, projection, "")
    (folder / "pca").mkdir()
    for name, array in ((delf.MEAN, np.zeros(128)), (delf.PROJECTION, np.eye(128))):
        (folder / "pca" / name).write_bytes(datum_io.encode(array))
    np.savez(folder / "weights.npz", layer=mean)
    (folder / "photos.npz").mkdir()
    asmk_images.make(folder)


class _Imported(BaseException):
    """TensorFlow was."""


class _Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "libtensorflow_cc"):
            raise _Imported(name)


def command_of(words: list[str]) -> str:
    """Returns the name of the command that the first words are."""
    return next(name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS)


def _answer(words: list[str]) -> str:
    """Returns what comes of a command: "error: ..." as its last line, or else."""
    name = command_of(words)
    module, function = COMMANDS[name].stage.split(":")
    try:
        stage = getattr(importlib.import_module(module), function)
        classes = [hint for key, hint in typing.get_type_hints(stage).items() if key != "return"]
        flags = command.with_recipe(words[len(name.split()) :], _recipes(name))
        with contextlib.redirect_stdout(io.StringIO()):
            stage(*command.read_flags(flags, *classes))
    except _Imported as error:
        return f"{error} was imported"
    except (configs.InputError, OSError, command.flags.Error) as error:
        return f"error: {error}"
    except Exception as error:
        return f"fault: {error!r}"
    return "done"


def _recipes(name: str) -> dict:
    from dolg_tf.stage import installed

    return installed.find_recipes(name)


def main() -> None:
    os.chdir(sys.argv[1])
    make_world(pathlib.Path.cwd())
    logging.disable(logging.CRITICAL)
    sys.meta_path.insert(0, _Refusing())
    found = {}
    for name, flags in TABLE.items():
        right = {flag: value for flag, (value, _) in flags.items() if value}
        for flag, (_, wrong) in flags.items():
            for value in wrong:
                given = (right | {flag: value}).items()
                words = [f"--{key}={each}" if key else each for key, each in given]
                start = time.process_time()
                told = _answer([*name.split(), *words])
                found[f"{name} {flag}={value}"] = [told, time.process_time() - start]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
