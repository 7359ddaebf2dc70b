"""Lists of photos, GLDv2's or your own CSV -> a table of photos and labels.

GLDv2 lists 4.1 million photos: the table holds about 20 bytes for each, and makes a photo's path
when it is asked for.
"""

import collections
import dataclasses
import decimal
import hashlib
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dolg_tf.data import photo_ids
from dolg_tf.data.records.shards import Photo
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

_GLDV2_ID = re.compile(r"[0-9A-Za-z_-]{3,64}")
SPLITS = ("train", "index", "query")  # of your own list
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
_CHUNK = 1 << 16  # rows that wait as Python objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListsConfig:
    """Options of the photos and their labels."""

    images_dir: str = option(
        "folder with GLDv2's a/b/c/ID.jpg, or with its images_000.tar and so on, which are not "
        "unpacked; or the folder to which paths in --labels_csv are relative (empty: that of the "
        "CSV)",
        "",
    )
    train_csv: str = option("GLDv2's train.csv: id,url,landmark_id", "")
    train_clean_csv: str = option(
        "GLDv2's train_clean.csv: landmark_id,images; if given, it alone decides", ""
    )
    labels_csv: str = option(
        "your own list instead: path,landmark (or path,label) and optionally split, of which train "
        "is used",
        "",
    )
    exclude: str = option(
        "file of image ids to leave out, one per line, such as those that RGLDv2-clean drops; # "
        "begins a comment; the id of a photo in --labels_csv is its path without .jpg, .jpeg or "
        ".png",
        "",
    )

    def __post_init__(self):
        if bool(self.labels_csv) == bool(self.train_csv or self.train_clean_csv):
            raise InputError("give --train_csv, --train_clean_csv or both, or else --labels_csv")
        if not self.labels_csv and not self.images_dir:
            raise InputError("--images_dir is required: the folder with GLDv2's photos")

    @property
    def root(self) -> str:
        """Folder of the photos."""
        return self.images_dir or str(pathlib.Path(self.labels_csv).parent)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where photos lie in tars."""

    tars: tuple[str, ...]  # paths
    tar: np.ndarray  # int16 (N,): index into `tars`; -1: in none of them
    offset: np.ndarray  # int64 (N,), bytes
    size: np.ndarray  # uint32 (N,), bytes


@dataclasses.dataclass(frozen=True, eq=False)
class PhotoTable(Sequence):
    """Photos, as columns; `table[i]` is a `Photo`."""

    root: str
    ids: np.ndarray  # bytes (N,), UTF-8
    suffixes: np.ndarray | None  # bytes (N,), of the paths; None: GLDv2's a/b/c/ID.jpg
    labels: np.ndarray  # int32 (N,)
    excluded: int = 0  # listed photos that --exclude left out
    excluded_not_listed: int = 0  # ids of --exclude that are not in the list
    places: Places | None = None  # in tars; None: the photos are files

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Photo:
        name, label = self.ids[number].decode(), int(self.labels[number])
        if self.places is not None:
            tar = int(self.places.tar[number])
            if tar < 0:  # a path that does not exist, but says where the photo was looked for
                return Photo(name, f"{self.root}/images_*.tar", label)
            spot = int(self.places.offset[number]), int(self.places.size[number])
            return Photo(name, self.places.tars[tar], label, *spot)
        if self.suffixes is None:
            return Photo(name, f"{self.root}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg", label)
        return Photo(name, f"{self.root}/{name}{self.suffixes[number].decode()}", label)

    def take(self, numbers: np.ndarray) -> "PhotoTable":
        """Returns the photos of these numbers, in this order."""
        places = self.places
        if places is not None:
            columns = (places.tar, places.offset, places.size)
            places = Places(places.tars, *(column[numbers] for column in columns))
        suffixes = None if self.suffixes is None else self.suffixes[numbers]
        return PhotoTable(
            self.root, self.ids[numbers], suffixes, self.labels[numbers], places=places
        )

    def sha256(self) -> str:
        """Returns a hash of ids, suffixes and labels."""
        digest = hashlib.sha256()
        for column in (self.ids, self.suffixes, self.labels):
            if column is not None:
                digest.update(f"{column.dtype.str} {len(column)}\n".encode())
                digest.update(np.ascontiguousarray(column).data.cast("B"))
        return digest.hexdigest()


# --- rows ---------------------------------------------------------------------------------


def _gldv2_rows(settings: ListsConfig) -> Iterator[tuple[str, str, str, int]]:
    """Yields where, photo id, no suffix and landmark."""
    if settings.train_clean_csv:
        listed = read_table(settings.train_clean_csv, ["images"], ["landmark_id"])
    else:
        listed = read_table(settings.train_csv, ["id"], ["landmark_id"])
    empty = []
    for where, (ids, landmark) in listed:
        if not ids.strip():
            empty.append(where)
        if not (landmark.isdecimal() and landmark.isascii() and len(landmark) < 19):
            raise InputError(f"{where}: landmark_id is {landmark!r}, but must be a number")
        for name in ids.split() if settings.train_clean_csv else [ids]:
            if not _GLDV2_ID.fullmatch(name):
                raise InputError(f"{where}: {name!r} is not an image id")
            yield where, name, "", int(landmark)
    if empty:
        log.warning("%d landmarks list no photo and are left out; first %s", len(empty), empty[0])


def own_rows(labels_csv: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields where, path, landmark and split of your own list; no split means train.

    Blanks around landmark and split do not count.
    """
    columns = (["path"], ["landmark", "label"], ["split", ""])
    for where, (path, landmark, split) in read_table(labels_csv, *columns):
        landmark, split = landmark.strip(), split.strip() or "train"
        if not path or not landmark:
            raise InputError(f"{where}: an empty {'landmark' if path else 'path'}")
        if split not in SPLITS:
            raise InputError(f"{where}: split is {split!r}, but must be one of {', '.join(SPLITS)}")
        yield where, path, landmark, split


def warn_of_equal_numbers(labels_csv: str, landmarks: Iterable[str]) -> None:
    """Tells of landmarks such as `1`, `01` and `1.0`, which a spreadsheet makes of one number."""
    texts = {}
    for landmark in landmarks:
        if _NUMBER.fullmatch(landmark):
            texts.setdefault(decimal.Decimal(landmark), []).append(landmark)
    for same in texts.values():
        if len(same) > 1:
            names = ", ".join(map(repr, same))
            log.warning("%s: %s are one number, but landmarks of their own", labels_csv, names)


def _refuse_outside(root: str, name: str, inside: set[str]) -> None:
    """Raises like `files.inside`, which is slow, but looks at each folder only once.

    Args:
      root: the folder that must not be left.
      name: path of a photo below it.
      inside: the folders already found to lie in it.
    """
    folder, _, last = name.rpartition("/")
    if folder not in inside or last == ".." or pathlib.Path(root, name).is_symlink():
        files.inside(root, name)
        files.inside(root, folder)
        inside.add(folder)


def _own_training_rows(settings: ListsConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yields where, photo id, suffix of its file and landmark."""
    inside, others = set(), collections.Counter()
    for where, name, landmark, split in own_rows(settings.labels_csv):
        if split != "train":
            others[split] += 1
            continue
        try:
            _refuse_outside(settings.root, name, inside)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        photo_ids.check_name(name, where)
        yield where, photo_ids.id_of(name), photo_ids.split_suffix(name)[1], landmark
    for split, count in sorted(others.items()):
        log.info("%s: %d photos of split %s are not trained on", settings.labels_csv, count, split)


def _rows(settings: ListsConfig) -> Iterator[tuple]:
    return _own_training_rows(settings) if settings.labels_csv else _gldv2_rows(settings)


# --- table --------------------------------------------------------------------------------


def _columns(rows: Iterator[tuple]) -> tuple[list[np.ndarray], list]:
    """Returns ids, suffixes and landmark numbers (int32), and the landmark of each number."""
    numbers, chunks, chunk = {}, [], []

    def pack():
        ids, suffixes, labels = zip(*chunk, strict=True)
        chunks.append((np.array(ids, "S"), np.array(suffixes, "S"), np.array(labels, np.int32)))
        chunk.clear()

    for _, name, suffix, landmark in rows:
        number = numbers.setdefault(landmark, len(numbers))
        chunk.append((name.encode(), suffix.encode(), number))
        if len(chunk) == _CHUNK:
            pack()
    if chunk:
        pack()
    return [np.concatenate(column) for column in zip(*chunks, strict=True)], list(numbers)


def _refuse_second(settings: ListsConfig, repeated: bytes) -> None:
    """Raises an error that names the line on which an id occurs for the second time."""
    first = None
    for where, name, suffix, _ in _rows(settings):
        if name.encode() == repeated:
            if first is not None:
                told = f"{name + suffix!r} is listed twice (as image {name}, like {first!r})"
                remedy = "rename one of them" if name + suffix != first else "list it once"
                raise InputError(f"{where}: {told}; {remedy}")
            first = name + suffix


def _read_excluded(path: str) -> np.ndarray:
    """Returns the ids of an exclusion list, sorted, each once."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    ids = (line.partition("#")[0].strip().encode() for line in lines)
    return np.unique(np.array([name for name in ids if name], "S"))


def read_photos(settings: ListsConfig) -> tuple[PhotoTable, list]:
    """Reads the lists.

    Returns:
      The photos, sorted by label and id, and the landmark of each label: labels are dense and
      ascend with the landmark.

    Raises:
      InputError: naming file and line of a fault in a list, or when it lists no photos.
    """
    source = settings.labels_csv or settings.train_clean_csv or settings.train_csv
    columns, landmarks = _columns(_rows(settings))
    if not landmarks:
        raise InputError(f"{source}: it lists no photos to train on")
    if settings.labels_csv:
        warn_of_equal_numbers(source, landmarks)
    order = np.argsort(columns[0], kind="stable")
    ids, suffixes, labels = (column[order] for column in columns)
    del columns, order
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if len(repeated):
        _refuse_second(settings, ids[repeated[0]])
    left_out = not_listed = 0
    if settings.exclude:
        excluded = _read_excluded(settings.exclude)
        keep = ~np.isin(ids, excluded)
        left_out = len(ids) - int(keep.sum())
        not_listed = len(excluded) - left_out
        ids, suffixes, labels = ids[keep], suffixes[keep], labels[keep]
        if not len(ids):
            raise InputError(f"{settings.exclude}: it excludes all {left_out} photos of {source}")
    # Dense labels, ascending with the landmark, for those that still have photos.
    used = sorted(np.unique(labels).tolist(), key=landmarks.__getitem__)
    new = np.zeros(len(landmarks), np.int32)
    new[used] = np.arange(len(used))
    labels = new[labels]
    order = np.argsort(labels, kind="stable")
    table = PhotoTable(
        settings.root,
        ids[order],
        suffixes[order] if settings.labels_csv else None,
        labels[order],
        left_out,
        not_listed,
    )
    return table, [landmarks[number] for number in used]
