"""The descriptor set: what extraction writes and search and scoring read.

A directory with `ids.txt` (one id per line: the photo's path relative to the image root, without
suffix; in format 2 with it, see `meta`), `descriptors-%05d-of-%05d.npy` (rows in the order of the
ids, float32 or float16) and `meta.json`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from dolg_tf.retrieval import joining, norms
from dolg_tf.retrieval.meta import FORMAT_VERSIONS, check_meta, format_version, with_defaults
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import checksums, files, workshop
from dolg_tf.stage.config import InputError, flags_of

_META_KEYS = ("image_root", "model_hash", "scales", "crop", "max_side", "dtype", "whitening", "bad")
UNFINISHED = "unfinished"  # folder inside an unfinished set, see `extract.shards`
_SHARD = re.compile(r"descriptors-(\d{5})-of-(\d{5})\.npy")
_REMEDY = "extract the set again"
_OPTIONS = ("max_side", "query_scale", "box_rounding", "upright", "dtype")  # keys that are flags


@dataclasses.dataclass(frozen=True)
class DescriptorSet:
    """Descriptors with the ids of their photos.

    Attributes:
      ids: one per row; None for a bare `.npy`, whose rows are known by position only.
      descriptors: (N, D), read as float32: `Rows` on disk, or an array.
      meta: how they were made, as in `meta.json`; empty for a bare `.npy`.
      source: where they were read from, for errors.
    """

    ids: tuple[str, ...] | None = dataclasses.field(repr=False)
    descriptors: Rows | np.ndarray
    meta: dict = dataclasses.field(default_factory=dict)
    source: str = "descriptor set"

    def __len__(self) -> int:
        return len(self.descriptors)

    def select(self, ids) -> Rows | np.ndarray:
        """Returns the (len(ids), D) descriptors of these photos, in this order.

        A set is joined by id, whatever its order; names with a suffix or of another image root are
        joined where that is clear (see `joining`). A bare `.npy` is joined by row: its first row
        belongs to the first id, and rows after the last id are ignored.

        Raises:
          InputError: when a photo has no descriptor.
        """
        if self.ids is None:
            if len(self) < len(ids):
                raise InputError(
                    f"{self.source} has {len(self)} rows for {len(ids)} photos; an .npy needs one "
                    "row per photo, in the order of the list"
                )
            if len(self) == len(ids):
                return self.descriptors
            return self.descriptors[: len(ids)]
        if tuple(ids) == self.ids:
            return self.descriptors
        rows = joining.find_rows(ids, self.ids, self.source)
        if (rows < 0).any():
            raise InputError(
                f"{self.source} lacks {joining.of_which(ids, rows, self.ids)}; extract them with "
                f"the same model, or check that image_root ({self.meta.get('image_root')}) is the "
                "folder the names refer to"
            )
        return self.descriptors[rows]


def shard_name(shard: int, count: int) -> str:
    """Returns a file name such as `descriptors-00003-of-00012.npy`."""
    return f"descriptors-{shard:05d}-of-{count:05d}.npy"


def check_ids(ids, source) -> None:
    """Makes sure that ids can be lines of `ids.txt`.

    Raises:
      InputError: naming the first id that is empty, has blanks around it or a line break, cannot
        be encoded as UTF-8, or occurs twice.
    """
    seen = set()
    for id_ in ids:
        if not id_ or id_ != id_.strip() or len(id_.splitlines()) != 1:
            raise InputError(f"{source}: the id {id_!r} is empty or has blanks around it")
        if id_ in seen:
            raise InputError(f"{source}: the id {id_!r} occurs twice; list each photo once")
        seen.add(id_)
    try:
        "\n".join(seen).encode()
    except UnicodeEncodeError as error:
        wrong = min(id_ for id_ in seen if not _is_text(id_))
        raise InputError(
            f"{source}: {wrong!r} cannot be encoded as UTF-8; rename the photo"
        ) from error


def read_ids(path: pathlib.Path) -> tuple[str, ...]:
    """Reads the `ids.txt` of a set.

    Raises:
      InputError: when it is missing or not UTF-8, or an id cannot be one.
    """
    files.refuse_other_than_file(path)
    try:
        ids = tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: missing or not UTF-8; {_REMEDY}") from error
    check_ids(ids, path)
    return ids


def _is_text(name: str) -> bool:
    # Python decodes bytes of a file name that are not UTF-8 to surrogates.
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_output(path: files.Path, overwrite: bool) -> None:
    """Makes sure that a set may be put in place.

    Raises:
      InputError: when something is there, unless it is a finished set and `overwrite` is true.
    """
    path = pathlib.Path(path)
    files.check_output(path, overwrite, "meta.json")
    # An index has a meta.json too, and a local feature set both.
    there = any(path.glob("descriptors-*.npy")) and not (path / "offsets.npy").exists()
    if path.exists() and not there:
        raise InputError(
            f"{path} is not a descriptor set, and --overwrite replaces nothing else; give another "
            "--output"
        )


def write(
    path: files.Path,
    descriptors: DescriptorSet,
    shard_rows: int = 262144,
    normalize: bool = False,
) -> None:
    """Writes a descriptor set, whole or not at all.

    Args:
      path: the directory; anything there is replaced.
      descriptors: the set; its meta must have the format's keys except `format_version` and
        `dtype`, which defaults to float32.
      shard_rows: maximum number of rows in one `.npy`, and in memory when the set is on disk.
      normalize: whether rows are divided by their norms.

    Raises:
      InputError: when ids and rows do not match, an id is repeated, or a row is not finite or not
        of unit norm.
    """
    rows, ids = descriptors.descriptors, descriptors.ids
    if ids is None or len(ids) != len(rows):
        raise InputError(f"{path}: {len(rows)} descriptors need as many ids")
    check_ids(ids, path)
    meta = {"dtype": "float32", **descriptors.meta}
    shards = max(1, -(-len(rows) // shard_rows))
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        for shard in range(shards):
            first = shard * shard_rows
            block = rows[first : first + shard_rows]
            if normalize:
                found = norms.norms_of(block, path)
                norms.check_finite(found, path, first)
                norms.check_none_zero(found, path, lambda row, first=first: f"row {first + row}")
                block = np.asarray(norms.Normalized(block, found))
            norms.check_rows(block, path, first)
            np.save(temporary / shard_name(shard, shards), block.astype(meta["dtype"]))
        write_about(temporary, ids, meta)


def write_about(path: pathlib.Path, ids: Iterable[str], meta: dict) -> None:
    """Writes `ids.txt`, and `meta.json` last: with it a set is finished.

    Raises:
      InputError: when meta lacks a key of the format.
    """
    for key in _META_KEYS:
        if key not in meta:
            raise InputError(f"{path}: meta has no {key!r}")
    files.write_text(path / "ids.txt", "".join(f"{id_}\n" for id_ in ids))
    names = [file.name for file in _shards(path)]
    meta = {**meta, "format_version": format_version(meta)}
    checksums.write_json(path / "meta.json", meta, checksums.of_files(path, ["ids.txt", *names]))


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    found = {}
    for file in sorted(path.glob("descriptors-*.npy")):
        match = _SHARD.fullmatch(file.name)
        if match is None:
            raise InputError(f"{file}: shards are named descriptors-00000-of-00001.npy")
        found[file] = (int(match[1]), int(match[2]))
    total = max((count for _, count in found.values()), default=0)
    if not total or list(found.values()) != [(i, total) for i in range(total)]:
        raise InputError(f"{path}: {len(found)} of {total} descriptor shards; extract it again")
    return list(found)


def _progress(path: pathlib.Path) -> str:
    """Says how much of an unfinished set is there."""
    done = sorted((path / UNFINISHED).glob("shard-*-of-*.json"))
    return f"{len(done)} of {int(done[-1].stem[-5:])} shards" if done else "no shard yet"


def read(path: files.Path, normalize: bool = False, remedy: str = norms.REMEDY) -> DescriptorSet:
    """Reads a descriptor set, or a bare `.npy` of rows in an order known to the caller.

    The rows stay on disk (memory-mapped).

    Args:
      path: of the set or the `.npy`.
      normalize: whether rows are divided by their norms; else those of other norms are refused.
      remedy: what the refusal of other norms proposes.

    Raises:
      InputError: when a file is missing or damaged, counts disagree, an id is repeated, or a
        row is not finite or not of unit norm.
    """
    path = pathlib.Path(path)
    workshop.recover(path)
    if path.suffix == ".npy" and not path.is_dir():
        rows = _rows([norms.read_npy(path)], path, normalize, "row {}".format, remedy)
        return DescriptorSet(None, rows, {}, str(path))
    if not path.is_dir():
        raise InputError(f"{path}: no such descriptor set; `dolg extract` writes one")
    if not (path / "meta.json").exists() and (path / UNFINISHED).is_dir():
        raise InputError(f"{path} is unfinished: {_progress(path)}; run the same extraction again")
    if (path / "offsets.npy").exists():
        raise InputError(f"{path} is a local feature set; give the descriptor set beside it")
    meta, sums = checksums.read_json(path / "meta.json", FORMAT_VERSIONS, _REMEDY)
    check_meta(meta, _META_KEYS, path / "meta.json", _REMEDY)
    shards = _shards(path)
    checksums.check(path, {name: sums[name] for name in sums if name == "ids.txt"}, _REMEDY)
    ids = read_ids(path / "ids.txt")
    loaded = [norms.read_npy(shard, sums.get(shard.name)) for shard in shards]
    if len({array.shape[1] for array, _ in loaded}) != 1:
        raise InputError(f"{path}: shards of different widths; extract the set again")
    count = sum(len(array) for array, _ in loaded)
    if count != len(ids):
        raise InputError(f"{path}: {count} descriptors for {len(ids)} ids; extract it again")
    rows = _rows(loaded, path, normalize, lambda row: f"row {row}, {ids[row]!r}", remedy)
    return DescriptorSet(ids, rows, with_defaults(meta), str(path))


def unit_rows(rows: Rows | np.ndarray, source, normalize: bool) -> Rows:
    """Returns rows as `Rows` of unit norm.

    Args:
      rows: float (N, D).
      source: of the rows, for the error.
      normalize: whether rows are divided by their norms.

    Raises:
      InputError: when a row is not finite, or not of unit norm.
    """
    loaded = []
    for array in rows.arrays if isinstance(rows, Rows) else [rows]:
        found = norms.norms_of(array, source)
        norms.check_finite(found, source)
        loaded.append((array, found))
    return _rows(loaded, source, normalize, "row {}".format, norms.REMEDY)


def _rows(
    loaded: list[tuple[np.ndarray, np.ndarray]],
    source: files.Path,
    normalize: bool,
    name: Callable[[int], str],
    remedy: str,
) -> Rows:
    """Returns arrays with their norms as `Rows` of unit norm."""
    found = np.concatenate([lengths for _, lengths in loaded])
    if normalize:
        norms.check_none_zero(found, source, name)
        return Rows([norms.Normalized(*one) for one in loaded])
    norms.check_unit(found, source, name, remedy)
    return Rows([array for array, _ in loaded])


def finished(path: files.Path, meta: dict) -> DescriptorSet | None:
    """Returns the set at `path` if it was made as `meta` says; None if there is nothing.

    Args:
      path: the directory.
      meta: what its `meta.json` must say; `images` is a hash of the list of photos.

    Raises:
      InputError: when it was made with another model, other settings or other photos.
    """
    path = pathlib.Path(path)
    if not workshop.recover(path / "meta.json"):
        if not path.exists():
            return None
        if not path.is_dir() or (any(path.iterdir()) and not (path / UNFINISHED).is_dir()):
            raise OtherOutput(path, "exists and is not a descriptor set", "choose another")
        return None
    found = read(path)
    refuse_other(path, "made", found.meta, meta)
    return found


class OtherOutput(InputError):
    """Something in the place of an output that is not what would be made now.

    Attributes:
      how: what it is, in words that fit behind its path.
    """

    def __init__(self, path: pathlib.Path, how: str, remedy: str):
        super().__init__(f"--output={path} {how}; {remedy}")
        self.how = how


def refuse_other(path: pathlib.Path, verb: str, found: dict, meta: dict) -> None:
    """Makes sure that an existing output is what would be made now.

    Args:
      path: of the output.
      verb: what was done there, "made" or "begun".
      found: its metadata.
      meta: what they must say; `images` and `names` are hashes of the list of photos.

    Raises:
      OtherOutput: naming all differences, and the flags that would undo them.
    """
    changed = [key for key in meta if found.get(key) != meta[key]]
    if not changed:
        return
    listed = {key for key in changed if key in ("images", "names")}
    told = ["of other photos"] if listed else []
    told += [
        f"with {key}={found.get(key)!r}, not {meta[key]!r}" for key in changed if key not in listed
    ]
    known = all(key in _OPTIONS and found.get(key) is not None for key in changed)
    give = f", or give {flags_of(found, changed)}" if known else ""
    how = f"was {verb} {' and '.join(told)}"
    raise OtherOutput(path, how, f"delete it or choose another --output{give}")
