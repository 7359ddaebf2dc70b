"""A person's own photos: the queries and the index of a labels.csv become ground truths."""

import collections
import csv
import pathlib
import pickle

from PIL import Image

from dolg_tf import files
from dolg_tf.config import InputError

_SPLITS = ("train", "index", "query")


def read_labels(path: files.Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV with the columns path, landmark and split.

    Raises:
      InputError: naming the file and line of what is missing or wrong.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; it lists your photos, header path,landmark,split, where "
            f"split is one of {', '.join(_SPLITS)}"
        )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"path", "landmark", "split"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{path}, line 1: no column {sorted(missing)[0]!r}")
        rows = list(reader)
    for line, row in enumerate(rows, 2):
        if row["split"] not in _SPLITS:
            raise InputError(
                f"{path}, line {line}: split is {row['split']!r}, not one of {', '.join(_SPLITS)}"
            )
    return rows


def write_ground_truths(labels: files.Path, output: files.Path) -> dict[str, pathlib.Path]:
    """Writes revisited-style ground truths: every index photo of the query's landmark is easy.

    Args:
      labels: the CSV; its paths are relative to its folder.
      output: folder of `gnd_seen.pkl`, for queries whose landmark has training photos, and
        `gnd_unseen.pkl`, for the others; one without queries is not written.

    Returns:
      {"seen"|"unseen": path}.

    Raises:
      InputError: when there are no queries or no index, a path leads out of the folder, or a
        query cannot be read.
    """
    labels, output = pathlib.Path(labels), pathlib.Path(output)
    rows = read_labels(labels)
    by_split = {split: [row for row in rows if row["split"] == split] for split in _SPLITS}
    for split in _SPLITS:
        if not by_split[split]:
            raise InputError(f"{labels}: no photo has split {split}")
    trained = {row["landmark"] for row in by_split["train"]}
    places = collections.defaultdict(list)
    for place, row in enumerate(by_split["index"]):
        places[row["landmark"]].append(place)
    written = {}
    for name in ("seen", "unseen"):
        queries = [
            row for row in by_split["query"] if (row["landmark"] in trained) == (name == "seen")
        ]
        if not queries:
            continue
        truth = {
            "imlist": [_id(row) for row in by_split["index"]],
            "qimlist": [_id(row) for row in queries],
            "gnd": [
                {
                    "bbx": [0, 0, *_size(labels.parent, row)],
                    "easy": places[row["landmark"]],
                    "hard": [],
                    "junk": [],
                }
                for row in queries
            ],
        }
        written[name] = output / f"gnd_{name}.pkl"
        with files.atomic_path(written[name]) as temporary:
            temporary.write_bytes(pickle.dumps(truth, protocol=2))
    return written


def _id(row: dict[str, str]) -> str:
    return str(pathlib.PurePosixPath(row["path"]).with_suffix(""))


def _size(folder: pathlib.Path, row: dict[str, str]) -> tuple[int, int]:
    """Returns width and height in pixels."""
    path = files.inside(folder, row["path"])
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"{path}: this query cannot be read ({error})") from error
