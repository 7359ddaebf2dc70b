"""DELF's files of local features, `ID.delg_local` or `ID.delf` <-> local feature sets.

Such a file is a DelfFeatures: of each feature a descriptor, x, y, scale, orientation and strength;
of a photo without any, no bytes. It does not say how large the photo is.

Reference: `feature.proto` and `feature_io.py` of DELF (tensorflow/models, research/delf).
"""

import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dolg_tf.data import protos
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.local.feature_set import LOCAL_DTYPES, LocalFeatureSet
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".delg_local", ".delf")
# A message takes many times the two bytes of an empty feature; 1,000 of 1,024 numbers are 4 MiB.
MAX_BYTES = 32 << 20


def encode(features: LocalFeatures, orientations: Sequence[float] | None = None) -> bytes:
    """Returns local features as a serialised DelfFeatures.

    Args:
      features: of a photo.
      orientations: (N,), in radians; None: 0, as DELF's own.

    Raises:
      InputError: when a number is not finite.
    """
    rows = np.asarray(features.descriptors, np.float32)
    turned = np.zeros(len(features)) if orientations is None else orientations
    columns = np.column_stack(
        [features.positions[:, ::-1], features.scales, turned, features.strengths]
    ).astype(np.float32)
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
        raise InputError("a local feature is not finite; extract it again")
    message = protos.delf_class()()
    for row, (x, y, scale, orientation, strength) in zip(
        rows.tolist(), columns.tolist(), strict=True
    ):
        one = message.feature.add(x=x, y=y, scale=scale, orientation=orientation, strength=strength)
        one.descriptor.shape.dim.append(len(row))
        one.descriptor.float_list.value.extend(row)
    return message.SerializeToString()


def decode(data: bytes, source="DelfFeatures") -> tuple[LocalFeatures, np.ndarray]:
    """Returns the local features in a serialised DelfFeatures, and their orientations.

    The photo's size is taken to end at the lowest and the rightmost of them.

    Args:
      data: the bytes of a file.
      source: where they come from, for errors.

    Returns:
      The features, in the order of the file; float32 (N,), radians.

    Raises:
      InputError: when they are not a whole DelfFeatures, descriptors are not rows of one length,
        or a number is not finite.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{source}: {len(data):,} bytes, more than the {MAX_BYTES:,} that a photo's local "
            "features may take; extract fewer"
        )
    try:
        message = protos.parse(protos.delf_class(), data)
    except ValueError as error:
        raise InputError(
            f"{source}: cut short, or not DELF's features; extract it again"
        ) from error
    rows, columns = [], []
    for one in message.feature:
        row = np.array(one.descriptor.float_list.value, np.float32)
        if tuple(one.descriptor.shape.dim) != row.shape or row.shape != (rows or [row])[0].shape:
            raise InputError(
                f"{source}: feature {len(rows)} has {len(row)} numbers and the shape "
                f"{tuple(one.descriptor.shape.dim)!s:.60}; all must be rows of one length"
            )
        rows.append(row)
        columns.append((one.y, one.x, one.scale, one.strength, one.orientation))
    table = np.array(columns, np.float32).reshape(-1, 5)
    descriptors = np.array(rows, np.float32).reshape(len(rows), -1 if rows else 0)
    if not (np.isfinite(table).all() and np.isfinite(descriptors).all()):
        raise InputError(f"{source}: a number is not finite; extract it again")
    ends = np.clip(table[:, :2].max(0, initial=-1) + 1, 0, 1 << 30)
    size = int(np.ceil(ends[0])), int(np.ceil(ends[1]))
    found = LocalFeatures(
        table[:, :2].copy(), table[:, 2].copy(), table[:, 3].copy(), descriptors, size
    )
    return found, table[:, 4].copy()


def read(path: files.Path) -> tuple[LocalFeatures, np.ndarray]:
    """Reads a file such as `ID.delg_local`; see `decode`.

    Raises:
      InputError: as in `decode`, or when the file does not exist.
    """
    path = pathlib.Path(path)
    files.refuse_other_than_file(path)
    try:
        with path.open("rb") as file:
            return decode(file.read(MAX_BYTES + 1), path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error


# --- whole folders ----------------------------------------------------------------------


def file_of(folder: pathlib.Path, id_: str, suffix: str, source) -> pathlib.Path:
    """Returns the file of a photo: one per id, inside the folder.

    Raises:
      InputError: when the id is no path that stays in the folder.
    """
    parts = pathlib.PurePosixPath(id_)
    if parts.is_absolute() or ".." in parts.parts or str(parts) != id_:
        raise InputError(f"{source}: the id {id_!r} must be a path relative to a folder")
    return folder / f"{id_}{suffix}"


def write_files(
    folder: pathlib.Path, ids: Sequence[str], contents: Iterable[bytes], suffix: str, source
) -> None:
    """Writes one file per photo into a folder."""
    made = set()
    pairs = zip(ids, contents, strict=True)
    for id_, data in progress.track(pairs, len(ids), f"write {suffix}", "files"):
        path = file_of(folder, id_, suffix, source)
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(data)


def listed(folder: pathlib.Path, suffix: str) -> list[str]:
    """Returns the ids of the files with this suffix in a folder and below it, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        inner = pathlib.Path(parent).relative_to(folder)
        found += [
            (inner / name[: -len(suffix)]).as_posix() for name in names if name.endswith(suffix)
        ]
    return sorted(found)


def about_set(found: LocalFeatureSet) -> dict:
    """Returns what of a set is not in its files."""
    return {"ids": list(found.ids), "sizes": found.sizes.tolist(), "meta": found.meta}


def encoded(found: LocalFeatureSet) -> Iterator[bytes]:
    """Yields the file of each photo of a set."""
    return (encode(features) for features in found)


def _sizes(folder: pathlib.Path, about: Mapping) -> list[tuple[int, int]] | None:
    """Returns the sizes of the photos, where they are known.

    Raises:
      InputError: when they are no heights and widths, or numbers are stored as none are.
    """
    sizes, dtype = about.get("sizes"), about["meta"].get("dtype", LOCAL_DTYPES[0])
    if dtype not in LOCAL_DTYPES:
        raise InputError(f"{folder}: dtype is {dtype!r:.60}; write the folder again")
    if sizes is None:
        return None
    try:
        table = np.array(sizes)
    except ValueError:  # rows of several lengths
        table = np.zeros(0)
    wanted = (len(about["ids"]), 2)
    if table.shape != wanted or table.dtype != np.int64 or (table < 0).any() or (table >> 31).any():
        raise InputError(
            f"{folder}: the sizes of its photos are not {wanted[0]} heights and widths; write the "
            "folder again"
        )
    return [(height, width) for height, width in table.tolist()]


def write_set(
    folder: pathlib.Path, about: Mapping, suffix: str, output: files.Path, normalize: bool
) -> None:
    """Joins the files of a folder into a local feature set.

    Args:
      folder: of the files.
      about: see `about_set`; of a folder that DELF wrote, without "sizes".
      suffix: of the files.
      output: the set.
      normalize: whether descriptors are divided by their norms.

    Raises:
      InputError: when a file is damaged, or descriptors are of several lengths or, unless they are
        normalized, not of unit norm; or what is said of them is damaged.
    """
    ids, sizes, turned = about["ids"], _sizes(folder, about), 0

    def photos() -> Iterator[tuple[str, LocalFeatures]]:
        nonlocal turned
        for row, id_ in enumerate(progress.track(ids, len(ids), f"read {suffix}", "files")):
            found, orientations = read(file_of(folder, id_, suffix, folder))
            turned += bool(orientations.any())
            rows = found.descriptors
            if normalize:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            size = found.size if sizes is None else sizes[row]
            yield id_, LocalFeatures(found.positions, found.scales, found.strengths, rows, size)

    writing.write(output, photos(), about["meta"])
    if turned:
        log.warning("%s: %d files have orientations, for which a set has no place", folder, turned)
    log.info("%s: local features of %d photos", output, len(ids))
