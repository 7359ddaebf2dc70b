"""The gain from `configs/finetune_small.flags`, on trained landmarks and on left-out ones.

    python benchmarks/quality/finetune_small.py --photos=$DOLG_REAL_PHOTOS --output=runs/finetuned

The folder holds photos and a labels.csv with the columns path, landmark and split. The recipe is
run four times, as a user would: on the training photos of all landmarks ("seen"), and three times
without a third of the landmarks, whose queries then give the scores ("fold0" to "fold2"). Scores
are mAP and recall at 1 over the whole index, with one descriptor per photo, three scales and no
re-ranking. Beside them stand the scores of the backbone's pooled map without any training. Finished
splits are kept in OUTPUT, so the same command continues after an interruption. Landmarks that show
one another must stay in one fold: `--together`.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from ablation_photos import Maps, Splits, landmark_names
from ablation_table import SPLITS
from photo_scores import percent_scores

from dolg_tf.data import images
from dolg_tf.data.own_photos import read_labels
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage import files, progress
from dolg_tf.stage.tables import write_table

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "finetune_small.flags"


def train(photos: pathlib.Path, rows: list[tuple[str, str]], folder: pathlib.Path) -> float:
    """Builds records of photos and trains with the recipe; returns the seconds of training.

    Args:
      photos: folder of the paths.
      rows: (path, landmark) of the training photos.
      folder: for copies of the photos, a labels.csv, the records and the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path, _ in rows:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / path, folder / path)
    write_table(folder / "labels.csv", ("path", "landmark"), rows)
    root = RECIPE.parents[1]
    commands = [
        f"-m dolg_tf records --labels_csv={folder}/labels.csv "
        f"--output_dir={folder}/records --num_shards=4 --validation_fraction=0",
        f"train.py --flagfile={RECIPE} --train_file_pattern={folder}/records/train-* "
        f"--validation_file_pattern= --logdir={folder}/run",
    ]
    for command in commands:
        start = time.monotonic()
        subprocess.run([sys.executable, *command.split()], cwd=root, check=True)
    return time.monotonic() - start


def describe(network: keras.Model, paths: list[pathlib.Path], what: str) -> list[np.ndarray]:
    """Returns pooled maps and descriptors, (N, D) each: unit sums over three scales."""
    # The backbone keeps its weights, so its pooled map is the same as before training.
    both = keras.Model(network.input, [network.get_layer("global").output, network.output])
    call = tf.function(lambda photo: both(photo, training=False), reduce_retracing=True)
    rows = []
    for path in progress.track(paths, len(paths), what):
        photo = images.decode(tf.io.read_file(str(path)))
        sides = [images.scaled_size(*photo.shape[:2], scale) for scale in SCALE_SETS["three"]]
        scales = [call(images.resize_levels(photo, *side)[None]) for side in sides]
        rows.append([sum(map(_unit, found)) for found in zip(*scales, strict=True)])
    return [_unit(np.concatenate(found)) for found in zip(*rows, strict=True)]


def _unit(rows) -> np.ndarray:
    return np.asarray(rows) / np.linalg.norm(rows, axis=-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--photos", required=True, help="folder of photos with a labels.csv")
    parser.add_argument("--output", required=True, help="folder of records, runs and results")
    parser.add_argument(
        "--together", default="", help="landmarks that show one another, separated by commas"
    )
    arguments = parser.parse_args()
    photos, output = pathlib.Path(arguments.photos), pathlib.Path(arguments.output).resolve()
    labels = read_labels(photos / "labels.csv")
    names = landmark_names(labels)
    numbers = {split: np.array([names.index(x) for _, x in rows]) for split, rows in labels.items()}
    together = tuple(names.index(name) for name in arguments.together.split(",") if name)
    folds = Splits({split: Maps({}, found) for split, found in numbers.items()}, together).folds
    paths = {split: [photos / path for path, _ in rows] for split, rows in labels.items()}
    print("| landmarks | untrained GeM mAP | R@1 | fine-tuned mAP | R@1 | training |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for split in SPLITS:
        place = output / f"{split}.json"
        if not place.exists():
            left_out = folds == (-1 if split == "seen" else int(split.removeprefix("fold")))
            out = left_out[numbers["train"]]
            kept = [row for row, x in zip(labels["train"], out, strict=True) if not x]
            files.write_json(place, _split(photos, kept, output / split, paths, numbers, left_out))
        cells = [f"{value:.1f}" for value in files.read_json(place)["scores"]]
        minutes = files.read_json(place)["seconds"] / 60
        print(f"| {split} | {' | '.join(cells)} | {minutes:.1f} min |", flush=True)


def _split(photos, rows, folder, paths, numbers, left_out) -> dict:
    """Returns the scores of a split (untrained mAP, R@1, fine-tuned mAP, R@1) and its seconds."""
    seconds = train(photos, rows, folder)
    network = load_network(folder / "run", weights="ema").network
    asked = left_out[numbers["query"]] | ~left_out.any()
    queries = [path for path, wanted in zip(paths["query"], asked, strict=True) if wanted]
    found = [describe(network, queries, "queries"), describe(network, paths["index"], "index")]
    landmarks = numbers["query"][asked], numbers["index"]
    scores = [percent_scores(*rows, *landmarks) for rows in zip(*found, strict=True)]
    return {"scores": np.ravel(scores).tolist(), "seconds": seconds}


if __name__ == "__main__":
    main()
