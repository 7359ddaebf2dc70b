"""Your own photos: queries and index of a labels.csv -> ground truths.

dolg ground-truth --labels_csv=photos/labels.csv --output=data/mine
"""

import collections
import dataclasses
import logging
import pathlib
import pickle
import posixpath

from dolg_tf.data import photo_files, photo_ids
from dolg_tf.data.photo_folders import Finder
from dolg_tf.data.records.label_lists import SPLITS, own_rows, warn_of_equal_numbers
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)


def read_labels(labels: files.Path) -> dict[str, list[tuple[str, str]]]:
    """Reads a CSV with the columns path, landmark and split.

    Returns:
      {"train"|"index"|"query": [(path, landmark), ...]}, each perhaps empty; a row without split
      is of train.

    Raises:
      InputError: naming file and line of what is missing or wrong, of a path that leads out of
        the CSV's folder, or of a photo that is listed twice.
    """
    labels = pathlib.Path(labels)
    if not labels.is_file():
        raise InputError(
            f"{labels}: no such file; it lists your photos under the header path,landmark,split, "
            f"where split is one of {', '.join(SPLITS)}"
        )
    by_split, seen = {split: [] for split in SPLITS}, {}
    for where, path, landmark, split in own_rows(str(labels)):
        try:
            files.inside(labels.parent, path)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        photo_ids.check_name(path, where)
        id_ = photo_ids.id_of(path)
        if id_ in seen:
            told = f"{where}: {path!r} is listed twice (as {id_}, like {seen[id_]!r})"
            if posixpath.normpath(path) != posixpath.normpath(seen[id_]):
                told = f"{told}; rename one of them"
            raise InputError(told)
        seen[id_] = path
        by_split[split].append((path, landmark))
    named = {landmark for rows in by_split.values() for _, landmark in rows}
    warn_of_equal_numbers(str(labels), sorted(named))
    return by_split


def write_ground_truths(labels: files.Path, output: files.Path) -> dict[str, pathlib.Path]:
    """Writes ground truths in the Revisited form: all index photos of a query's landmark are easy.

    Args:
      labels: the CSV; its paths are relative to its folder.
      output: folder of `gnd_seen.pkl`, for queries whose landmark has training photos, and
        `gnd_unseen.pkl`, for the others; a file without queries is not written.

    Returns:
      {"seen"|"unseen": path}.

    Raises:
      InputError: when there are no queries or no index photos, a path leads out of the folder, or a
        query photo cannot be read.
    """
    labels, output = pathlib.Path(labels), pathlib.Path(output)
    by_split = read_labels(labels)
    for split in ("index", "query"):
        if not by_split[split]:
            raise InputError(f"{labels}: no photo has split {split}")
    trained = {landmark for _, landmark in by_split["train"]}
    places = collections.defaultdict(list)
    for place, (_, landmark) in enumerate(by_split["index"]):
        places[landmark].append(place)
    _say_what_does_not_count(labels, by_split, places)
    written, finder = {}, Finder(labels.parent)
    index_ids = [finder.find(path, labels)[0] for path, _ in by_split["index"]]
    found = [(*finder.find(path, labels), landmark) for path, landmark in by_split["query"]]
    for name in ("seen", "unseen"):
        queries = [
            (id_, file, landmark)
            for id_, file, landmark in found
            if (landmark in trained) == (name == "seen")
        ]
        if not queries:
            continue
        truth = _truth(index_ids, queries, places)
        written[name] = output / f"gnd_{name}.pkl"
        with files.atomic_path(written[name]) as temporary:
            temporary.write_bytes(pickle.dumps(truth, protocol=2))
    return written


def _truth(index_ids: list[str], queries: list[tuple[str, str, str]], places: dict) -> dict:
    """Returns a ground truth in the Revisited form.

    Args:
      index_ids: of the photos to search in.
      queries: (id, file, landmark) of each.
      places: {landmark: rows of its index photos}.
    """
    # Boxes and empty lists are shared: a pickle's reader is bounded in what it holds.
    boxes, none, gnd = {}, [], []
    for _, file, landmark in queries:
        size = _size(pathlib.Path(file))
        box = boxes.setdefault(size, [0, 0, *size])
        gnd.append({"bbx": box, "easy": places[landmark], "hard": none, "junk": none})
    names = [id_ for id_, _, _ in queries]
    return {"imlist": index_ids, "qimlist": names, "gnd": gnd, "upright": True}


def _say_what_does_not_count(labels: pathlib.Path, by_split: dict, places: dict) -> None:
    """Tells of queries that match no index photo, and of photos that are not searched."""
    alone = [row for row in by_split["query"] if row[1] not in places]
    if alone:
        log.warning(
            "%s: %d queries match no index photo and count nowhere, such as %s of landmark %r",
            *(labels, len(alone), *alone[0]),
        )
    if by_split["train"]:
        log.info("%s: %d photos of split train are not searched", labels, len(by_split["train"]))


def _size(path: pathlib.Path) -> tuple[int, int]:
    """Returns width and height in pixels, as EXIF orientation turns the photo."""
    try:
        header = photo_files.read_header(photo_files.read_file(path))
    except (OSError, photo_files.UnusablePhoto) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: this query photo cannot be read ({reason})") from error
    size = header.width, header.height
    return size[::-1] if header.orientation >= 5 else size


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundTruthsConfig:
    """Which photos are searched, and where the ground truths are written."""

    labels_csv: str = option("your list: path,landmark,split, where split is train, index or query")
    output: str = option(
        "folder to write gnd_seen.pkl and gnd_unseen.pkl to; empty: that of the list", ""
    )


def ground_truths(settings: GroundTruthsConfig) -> dict[str, pathlib.Path]:
    """Writes ground truths of your own photos: a query matches the index photos of its landmark.

    gnd_seen.pkl holds the queries whose landmark has training photos, gnd_unseen.pkl the others.
    """
    output = settings.output or pathlib.Path(settings.labels_csv).parent
    written = write_ground_truths(settings.labels_csv, output)
    for path in written.values():
        log.info("%s", path)
    return written
