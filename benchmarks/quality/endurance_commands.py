"""The commands that `endurance.py` kills: their flags, and what of their output must be equal."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable

from endurance_world import TRAINING


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
      flags: with `{work}` for the folder of the outputs and `{NAME}` for an input of the world.
      output: what it writes, relative to the folder of the outputs.
      before: puts there what stands at the beginning; "" or the world's input that is replaced.
      compare: returns what of the output must be equal after a rerun.
      share: of all kills, relative to other commands; slow ones have a small one.
    """

    flags: tuple[str, ...]
    output: str
    before: str = ""
    compare: Callable[[pathlib.Path], object] = lambda path: file_sums(path)
    share: int = 5


def file_sums(path: pathlib.Path) -> dict[str, str]:
    """Returns {relative name: SHA-256} of the files of a folder, or of a file, but hidden ones."""
    found = {
        file.relative_to(path): file
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    }
    return {
        name.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def _names(path: pathlib.Path) -> list[str]:
    return sorted(file_sums(path))


def _training(path: pathlib.Path):
    """Returns the checkpoints of a run, and its losses to the fourth digit."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["name"] == "loss"]
    saved = sorted(file.name for file in path.glob("checkpoints/*.index"))
    return saved, [(row["step"], row["split"], f"{row['value']:.4g}") for row in rows]


_TRAINING = tuple(f"--{name}={value}" for name, value in TRAINING.items())
_DRAWING = ("landmarks=2", "unseen_landmarks=1", "photos_per_landmark=2", "index_per_landmark=3")
_SETS = ("--query_descriptors={set_query}", "--index_descriptors={set_index}")

COMMANDS: dict[str, Command] = {
    "draw": Command(
        (
            *(f"--{option}" for option in _DRAWING),
            *("--queries_per_landmark=1", "--size=48", "--processes=2", "--output={work}/drawn"),
        ),
        "drawn",
    ),
    "records": Command(
        (
            *("--labels_csv={photos}/labels.csv", "--num_shards=3", "--processes=2"),
            *("--validation_fraction=0.2", "--output_dir={work}/records"),
        ),
        "records",
    ),
    "records of tars": Command(
        (
            *("--images_dir={gldv2}", "--train_csv={gldv2}/train.csv", "--num_shards=2"),
            *("--processes=2", "--output_dir={work}/records"),
        ),
        "records",
    ),
    "ground-truth": Command(
        ("--labels_csv={photos}/labels.csv", "--output={work}/truths"), "truths"
    ),
    "extract": Command(
        ("--saved_model={saved_model}", "--images={photos}", "--output={work}/set"), "set", share=3
    ),
    "search": Command(
        (
            *("{photos}", "--query={photos}", "--k=3", "--model={saved_model}"),
            "--kept={work}/kept",
        ),
        "kept",
        compare=_names,
        share=3,
    ),
    "colour-histogram": Command(("--images={photos}", "--output={work}/set"), "set", share=2),
    "delf": Command(("--input={set_all}", "--output={work}/delf", "--overwrite"), "delf", "delf"),
    "whiten fit": Command(
        (
            *("--descriptors={set_train}", "--dimensions=6", "--overwrite"),
            "--output={work}/whitening.npz",
        ),
        "whitening.npz",
        "whitening.npz",
    ),
    "whiten apply": Command(
        (
            *("--descriptors={set_index}", "--whitening={whitening.npz}"),
            "--output={work}/white",
        ),
        "white",
    ),
    "whiten import": Command(
        (
            *("--datum={pca}", "--dimensions=4", "--overwrite"),
            "--output={work}/whitening.npz",
        ),
        "whitening.npz",
        "whitening.npz",
    ),
    "index build": Command(
        ("--descriptors={set_index}", "--output={work}/index", "--overwrite"), "index", "index"
    ),
    "index add": Command(("--index={work}/index", "--descriptors={set_query}"), "index", "index"),
    "index remove": Command(
        ("--index={work}/index", "--ids={set_train}/ids.txt"), "index", "index"
    ),
    "index rebuild": Command(
        ("--index={work}/index", "--saved_model={saved_model}"), "index", "index", share=2
    ),
    "index query": Command(
        (
            *("--index={index}", "--descriptors={set_query}", "--output={work}/photos.csv"),
            "--overwrite",
        ),
        "photos.csv",
    ),
    "asmk codebook": Command(
        ("--local={local}", "--words=8", "--output={work}/codebook.npz"), "codebook.npz"
    ),
    "asmk build": Command(
        ("--local={local}", "--codebook={codebook.npz}", "--output={work}/asmk"), "asmk"
    ),
    "asmk query": Command(
        ("--index={asmk}", "--local={local_query}", "--output={work}/scores"), "scores"
    ),
    "calibrate": Command(
        (
            *("--labels_csv={photos}/labels.csv", "--index_descriptors={set_all}"),
            *("--index={work}/index", "--output={work}/calibration.json", "--precision=0.5"),
        ),
        "index",
        "index",
    ),
    "evaluate revisited": Command(
        ("--ground_truth={gnd_seen.pkl}", *_SETS, "--output={work}/report.json"), "report.json"
    ),
    "evaluate gldv2": Command(
        (
            *("--task=retrieval", "--solution={kaggle}/retrieval_solution.csv", *_SETS),
            "--output={work}/report.json",
        ),
        "report.json",
    ),
    "submit": Command(("--task=retrieval", *_SETS, "--output={work}/found.csv"), "found.csv"),
    "match": Command(
        (
            *("--saved_model={saved_model}", "--output={work}/match.png"),
            "--photos={photos}/train/0_0.jpg,{photos}/train/0_1.jpg",
        ),
        "match.png",
        share=2,
    ),
    "report": Command(
        ("--ground_truth={gnd_seen.pkl}", *_SETS, "--output={work}/page"), "page", share=2
    ),
    "export": Command(
        (
            *("--model_dir={model}", "--scales=1", "--max_pixels=250000", "--overwrite"),
            "--output={work}/saved_model",
        ),
        "saved_model",
        "saved_model",
        _names,
        share=2,
    ),
    "train": Command(
        (
            *("--train_file_pattern={records}/train-*", "--logdir={work}/run", "--deterministic"),
            *("--validation_file_pattern={records}/validation-*", *_TRAINING),
        ),
        "run",
        compare=_training,
        share=3,
    ),
    "convert": Command(
        ("--input={official.npz}", "--output={work}/model"), "model", compare=_names, share=1
    ),
    "quickstart": Command(
        (
            *("--landmarks=4", "--photos_per_landmark=3", "--output={work}/quickstart"),
            *("--max_steps=2", "--batch_size=4"),
        ),
        "quickstart",
        compare=lambda path: sorted(file.name for file in path.iterdir()),
        share=1,
    ),
}
