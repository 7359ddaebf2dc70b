"""The index directory, in which photos are searched.

`index.faiss` is in faiss' own format (`IndexFlatIP` or `IndexIVFPQ`), `ids.txt` names its rows and
`meta.json` says how they were made. Rows are in the order of their ids, so a search that ranks
equal scores by row ranks them by id. `local/` holds the photos' local feature set, if there is one.
"""

import contextlib
import dataclasses
import functools
import pathlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.index import ivfpq
from dolg_tf.retrieval.index.calibration import is_sound
from dolg_tf.retrieval.local import feature_set, linking
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.meta import INDEX_VERSIONS, check_meta, format_version, with_defaults
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage import checksums, files, progress, workshop
from dolg_tf.stage.config import InputError

_REMEDY = "build the index again"
KINDS = ("flat", "ivfpq")
# What a model says of its descriptors.
SAME_MODEL = ("model_hash", "scales", "whitening")
# What two descriptors must share for their product to be meaningful.
SAME_SPACE = (*SAME_MODEL, "upright")
# What all photos of an index must share. The last two are of photos cut to boxes alone, so that
# queries with boxes are searched in an index of whole photos.
SAME_MAKING = (*SAME_SPACE, "crop", "max_side", "query_scale", "box_rounding")
_FLAT_HEADER = struct.Struct("<4siqqq?iQ")
_META_KEYS = (
    *("kind", "rows", "width", "sha256", "image_root", "crop", "max_side", "ivfpq", "calibration"),
    *SAME_MODEL,
)
LOCAL = "local"  # folder of the local feature set
_LOCAL_KEYS = ("model_hash", "kind", "dimensions")  # of its metadata, in those of the index
_BLOCK = 16384
_TRIES, _WAIT = 4, 0.02  # tries of a reader, and seconds between them: replacing takes far less


@dataclasses.dataclass(frozen=True)
class Index:
    """An index that is open for searching; it does not see later changes on disk.

    Example:
      index = Index.open("indexes/photos")
      found = index.search(model.describe(["a.jpg"], like=index.meta), k=5)
      names = [index.ids[row] for row in found.rows[0]]

    Attributes:
      path: the directory.
      ids: one per row, ascending.
      meta: the contents of `meta.json`.
      descriptors: (N, D), memory-mapped; None when the index is approximate.
      approximate: the `faiss.IndexIVFPQ`; None when the index is exact.
    """

    path: pathlib.Path
    ids: tuple[str, ...] = dataclasses.field(repr=False)
    meta: dict
    descriptors: Rows | None
    approximate: object = None

    @classmethod
    def open(cls, path: files.Path) -> "Index":
        """Opens an index; the descriptors of an exact one stay on disk.

        Raises:
          InputError: when it is missing, damaged or from another release.
        """
        path, failures = pathlib.Path(path), 0
        while True:
            # Another process may replace it meanwhile: then it is missing for a moment, or the
            # files read may come from two indexes.
            try:
                meta = read_meta(path)
                found = cls._open(path, meta)
                if str(read_meta(path)) == str(meta):  # as text: a NaN does not equal itself
                    return found
            except (ValueError, OSError):  # ours, or NumPy's for a file that is too short
                failures += 1
                if failures == _TRIES:
                    raise
                time.sleep(_WAIT)

    @classmethod
    def _open(cls, path: pathlib.Path, meta: dict) -> "Index":
        rows, width, file = meta["rows"], meta["width"], path / "index.faiss"
        for name in ("ids.txt", "index.faiss"):
            if not (path / name).is_file():
                raise InputError(f"{path / name}: no such file; build the index again")
        check_sum(path / "ids.txt", meta)
        ids = tuple(read_ids(path / "ids.txt"))
        if meta["kind"] == "ivfpq":
            check_sum(file, meta)
            return cls(path, ids, meta, None, ivfpq.read(file, rows, width))
        # Its size first: numbers beyond 64 bits fit into no header.
        known = file.stat().st_size == _FLAT_HEADER.size + rows * width * 4
        if known:
            header = _flat_header(rows, width)
            with file.open("rb") as opened:
                known = opened.read(len(header)) == header
        if not known:
            raise InputError(f"{file}: not an IndexFlatIP of {rows} x {width}; build it again")
        mapped = np.memmap(file, np.float32, "r", _FLAT_HEADER.size, (rows, width))
        return cls(path, ids, meta, Rows([mapped]))

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def local(self) -> LocalFeatureSet | None:
        """The photos' local features, in an order of their own; None: the index has none.

        Raises:
          InputError: when they are damaged, or the index was changed since it was opened.
        """
        if "local" not in self.meta:
            return None
        try:
            return feature_set.read(self.path / LOCAL)
        finally:
            if read_meta(self.path)["sha256"] != self.meta["sha256"]:
                raise InputError(f"{self.path}: it was changed since it was opened; open it again")

    @property
    def threshold(self) -> float | None:
        """The lowest score at which two photos show the same place; None: not calibrated."""
        calibration = self.meta["calibration"]
        return None if calibration is None else calibration["threshold"]

    @property
    def min_inliers(self) -> int:
        """The inliers that two photos of a place must have too; 0: the score says it alone."""
        return ((self.meta["calibration"] or {}).get("geometric") or {}).get("min_inliers", 0)

    def matches(self, scores: np.ndarray, inliers: np.ndarray | None = None) -> np.ndarray | None:
        """Returns which photos show the same place as their query.

        None: the index is not calibrated, or asks for inliers, counted as `dolg calibrate` had
        them, and they were not given.
        """
        if self.threshold is None or (self.min_inliers and inliers is None):
            return None
        # In float64: NumPy would round the threshold to float32, and a lower score might reach it.
        passed = np.asarray(scores, np.float64) >= self.threshold
        return passed & (inliers >= self.min_inliers) if self.min_inliers else passed

    def search(self, queries: np.ndarray, k: int = 10) -> Neighbours:
        """Finds the nearest photos by inner product; equal scores are ranked by id.

        Args:
          queries: float32 (Q, D).
          k: number of photos per query, at least 1.

        Returns:
          `scores` and `rows`, float32 and int64 (Q, min(k, N)), best first; the photo of a row is
          `ids[row]`. If an approximate index finds fewer, rows are -1 and scores -inf.

        Raises:
          InputError: when the queries do not fit, or a row of the index is damaged.
        """
        if self.approximate is None:
            try:
                return search.search(self.descriptors, queries, k)
            except InputError as error:
                raise InputError(f"{self.path}: {error}") from error
        search.check((len(self), self.meta["width"]), np.asarray(queries, np.float32), k)
        return ivfpq.find(self.approximate, queries, min(k, len(self)))

    def check_same(self, other: DescriptorSet, keys: Sequence[str] = SAME_SPACE) -> None:
        """Makes sure that descriptors may be compared with those of the index.

        Raises:
          InputError: when one of `keys` of their metadata, or their width, differs.
        """
        if other.ids is None:
            raise InputError(
                f"{other.source} is a bare .npy, which names neither photos nor model; give a "
                "descriptor set"
            )
        self.check_making(*how_made(other), (*keys, "width"))

    def check_making(self, source: str, meta: dict, keys: Sequence[str] = SAME_SPACE) -> None:
        """Makes sure that descriptors are made in the same way as those of the index.

        Raises:
          InputError: when one of `keys` of their metadata differs.
        """
        remedy = (
            "extract with the model and settings of the index, or rebuild the index with the other "
            "model"
        )
        check_same_space([(self.path, self.meta), (source, meta)], keys, remedy)


# --- descriptors that may be compared ---------------------------------------------------


def how_made(found: DescriptorSet) -> tuple[str, dict]:
    """Returns the source of a set and, for `check_same_space`, its metadata and width."""
    return found.source, {**found.meta, "width": found.descriptors.shape[1]}


def check_same_space(
    made: Iterable[tuple[files.Path, dict]],
    keys: Sequence[str] = (*SAME_SPACE, "width"),
    remedy: str = "extract all with the same model and settings",
) -> None:
    """Makes sure that descriptors were all made in the same way.

    Args:
      made: (source, metadata) of each set or index. One that lacks a key, such as a bare `.npy`,
        is not compared in this key.
      keys: of the metadata that must be equal; "width" is the length of a descriptor.
      remedy: the end of the error message.

    Raises:
      InputError: naming the first two that differ.
    """
    made = list(made)
    for key in keys:
        told = [(source, meta[key]) for source, meta in made if key in meta]
        for source, value in told[1:]:
            first, expected = told[0]
            if value != expected:
                mend = "extract both with --upright, or both with --noupright"
                raise InputError(
                    f"{source} has {key} {value!r:.80}, {first} has {expected!r:.80}: "
                    f"{mend if key == 'upright' else remedy}"
                )


# --- reading -------------------------------------------------------------------------


def read_meta(path: pathlib.Path) -> dict:
    """Reads the `meta.json` of an index.

    Raises:
      InputError: when it is missing, damaged or from another release.
    """
    file = path / "meta.json"
    if not workshop.recover(file):
        raise InputError(f"{path}: no index; `dolg index build` writes one")
    meta, _ = checksums.read_json(file, INDEX_VERSIONS, _REMEDY)
    check_meta(meta, _META_KEYS, file, _REMEDY)
    least, calibration = [(meta["rows"], 1), (meta["width"], 1)], meta["calibration"]
    if meta["kind"] == "ivfpq":
        made = meta["ivfpq"] if isinstance(meta["ivfpq"], dict) else {}
        least += [(made.get("nlist"), 0), (made.get("m"), 0), (made.get("nprobe"), 1)]
    sound = all(type(count) is int and count >= low for count, low in least)
    sound &= meta["kind"] in KINDS and isinstance(meta["sha256"], dict)
    if "local" in meta:
        sound &= isinstance(meta["local"], dict) and set(meta["local"]) >= set(_LOCAL_KEYS)
    if calibration is not None:
        sound &= is_sound(calibration)
    if not sound:
        raise InputError(f"{file}: damaged; {_REMEDY}")
    return with_defaults(meta)


def check_sum(file: pathlib.Path, meta: dict) -> None:
    """Compares a file of an index with its checksum.

    Raises:
      InputError: when they differ.
    """
    if files.sha256(file) != meta["sha256"].get(file.name):
        raise checksums.wrong(file, _REMEDY)


def read_ids(path: files.Path) -> list[str]:
    """Reads one id per line.

    Raises:
      InputError: when the file is missing or not UTF-8.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error})") from error
    return text.removesuffix("\n").split("\n") if text else []


def _flat_header(rows: int, width: int) -> bytes:
    """Returns the header of faiss' file of an `IndexFlatIP`."""
    inner_product, trained, unused = 0, True, 1 << 20
    return _FLAT_HEADER.pack(
        b"IxFI", width, rows, unused, unused, trained, inner_product, rows * width
    )


# --- writing -------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: files.Path, *, new: bool = False) -> Iterator[pathlib.Path]:
    """Keeps other writers of an index out; readers can still open it.

    Args:
      path: of the index.
      new: whether it may be missing.

    Raises:
      InputError: when another process is writing it, or it is missing.
    """
    path = pathlib.Path(path).resolve()  # a link stays a link, and the index has one lock
    if not new:
        read_meta(path)  # or a lock would be left beside a mistyped path
    taken = f"{path}: another process is changing this index; wait for it"
    with files.lock(workshop.hidden(path, "lock"), taken):
        yield path


def flat_meta(meta: Mapping, width: int, calibration: dict | None) -> dict:
    """Returns the metadata of the exact index of a descriptor set.

    Args:
      meta: of the set.
      width: of the rows.
      calibration: the threshold; None: there is none.
    """
    kept = ("image_root", "image_roots", *SAME_MAKING)
    found = {key: meta[key] for key in kept if key in meta}
    return found | {"kind": "flat", "width": width, "ivfpq": None, "calibration": calibration}


def write(
    path: files.Path,
    ids: Sequence[str],
    meta: dict,
    write_faiss: Callable[[pathlib.Path], None],
    features: Sequence[linking.Part] = (),
) -> None:
    """Writes an index, whole or not at all.

    Args:
      path: the directory; anything there is replaced.
      ids: ascending.
      meta: for `meta.json`; `format_version`, `rows` and `sha256` are added.
      write_faiss: writes `index.faiss` to the given path.
      features: local feature sets and their rows, one for each id; empty: the index has none.
    """
    meta = {key: value for key, value in meta.items() if key != "local"}
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        write_faiss(temporary / "index.faiss")
        files.write_text(temporary / "ids.txt", "".join(f"{id_}\n" for id_ in ids))
        if features:
            linking.join(temporary / LOCAL, features)
            meta["local"] = {key: features[0][0].meta[key] for key in _LOCAL_KEYS}
        sums = {name: files.sha256(temporary / name) for name in ("index.faiss", "ids.txt")}
        about = {**meta, "format_version": format_version(meta), "rows": len(ids), "sha256": sums}
        checksums.write_json(temporary / "meta.json", about, {})


def write_flat(rows, path: pathlib.Path) -> None:
    """Writes (N, D) rows as an `IndexFlatIP`, block by block: faiss writes only from memory."""
    total = -(-len(rows) // _BLOCK)
    with path.open("wb") as file:
        file.write(_flat_header(*rows.shape))
        for _, block in progress.track(blocks(rows, _BLOCK), total, "write", "blocks"):
            file.write(np.asarray(block, "<f4").tobytes())


def set_calibration(path: files.Path, calibration: dict, fitted_for: dict) -> None:
    """Stores a calibration from `dolg calibrate` with an index.

    Args:
      path: of the index.
      calibration: its contents.
      fitted_for: the `meta` of the index for which the threshold was fitted.

    Raises:
      InputError: when there is no index, its model or kind has changed since, or another process is
        changing it.
    """
    with locked(path) as folder:
        meta = read_meta(folder)
        made = [("the threshold", fitted_for), (folder, meta)]
        remedy = "the index was changed meanwhile; calibrate again"
        check_same_space(made, (*SAME_SPACE, "width", "kind"), remedy)
        checksums.write_json(folder / "meta.json", meta | {"calibration": calibration}, {})
