"""GLDv2's tars of photos, read without unpacking: which photo lies where in which tar.

Each tar is scanned once, header by header. The result is kept in a note, so that an interrupted
scan continues with the next tar. A photo is then read at its offset.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
import tarfile

import numpy as np

from dolg_tf.data.records.label_lists import PhotoTable, Places
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError
from dolg_tf.stage.processes import process_count, run_in_processes

log = logging.getLogger(__name__)

# Bytes read at once when the whole tar is hashed. tarfile copies the rest of them for each header,
# so more is slower.
_CHUNK = 1 << 16
_MEND = "download it again"


class _Hashing:
    """A file that is hashed while it is read from end to end."""

    def __init__(self, file):
        self._file, self.md5 = file, hashlib.md5(usedforsecurity=False)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.md5.update(data)
        return data


def find_tars(folder: files.Path) -> list[pathlib.Path]:
    """Returns the tars `images_*.tar` of a folder, if any, sorted by name."""
    return sorted(pathlib.Path(folder).glob("images_*.tar"))


def _wanted_md5(tar: pathlib.Path, md5_dir: str) -> str:
    """Returns the MD5 that GLDv2 gives for a tar; empty if it is not to be checked."""
    if not md5_dir:
        return ""
    path = pathlib.Path(md5_dir) / f"md5.{tar.stem}.txt"
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; it holds the MD5 of {tar}; {_MEND}") from error
    wanted = words[0].lower() if words else ""
    if len(wanted) != 32 or set(wanted) - set("0123456789abcdef"):
        raise InputError(f"{path}: {wanted!r} is not an MD5; {_MEND}")
    return wanted


def _members(tar: pathlib.Path, hashed: bool) -> tuple[list, str]:
    """Returns (id, offset, size) of each file in a tar, and its MD5 ("" unless `hashed`)."""
    found = []
    files.refuse_other_than_file(tar)
    with tar.open("rb") as file:
        stream = _Hashing(file)
        # As a stream, tarfile reads every byte and never seeks back; else it skips the photos.
        how = {"mode": "r|", "fileobj": stream, "bufsize": _CHUNK} if hashed else {"mode": "r:"}
        try:
            with tarfile.open(**({"fileobj": file} | how)) as archive:
                for member in archive:
                    if member.isfile():
                        stem = pathlib.PurePosixPath(member.name).stem
                        found.append((stem.encode(), member.offset_data, member.size))
                end = archive.offset
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{tar}: damaged or cut short ({error}); {_MEND}") from error
        while hashed and stream.read(_CHUNK):
            pass
        # At a damaged header tarfile stops as if the tar ended. A real end is a block of zeros.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(f"{tar}: damaged or cut short at byte {end}; {_MEND}")
        return found, stream.md5.hexdigest() if hashed else ""


def _stamp(tar: pathlib.Path) -> np.ndarray:
    """Returns size and time of a tar, which change with its content."""
    about = tar.stat()
    return np.array([about.st_size, about.st_mtime_ns], np.int64)


def index_tar(tar: pathlib.Path, notes: pathlib.Path, md5_dir: str) -> None:
    """Scans a tar, unless its note says that this was done already.

    Writes `NAME.npz` in `notes`: ids bytes (N,), offsets and sizes int64 (N,), md5 and stamp.

    Raises:
      InputError: when the tar is damaged or cut short, or its MD5 is wrong or unknown.
    """
    wanted, note = _wanted_md5(tar, md5_dir), notes / f"{tar.stem}.npz"
    # A damaged note is written anew.
    with contextlib.suppress(*files.DAMAGED_ARRAYS, FileNotFoundError), np.load(note) as found:
        if wanted in ("", str(found["md5"])) and (found["stamp"] == _stamp(tar)).all():
            return
    members, md5 = _members(tar, bool(wanted))
    if md5 != wanted:
        raise InputError(f"{tar}: its MD5 is {md5}, but must be {wanted}; {_MEND}")
    ids, offsets, sizes = zip(*members, strict=True) if members else ((), (), ())
    with files.atomic_path(note) as temporary, temporary.open("wb") as file:
        columns = {
            "ids": np.array(ids, "S"),
            "offsets": np.array(offsets, np.int64),
            "sizes": np.array(sizes, np.int64),
        }
        np.savez(file, **columns, md5=np.array(md5), stamp=_stamp(tar))


def _index(tar: pathlib.Path, notes: pathlib.Path, md5_dir: str) -> pathlib.Path:
    index_tar(tar, notes, md5_dir)
    return tar


def locate(
    photos: PhotoTable, notes: files.Path, md5_dir: str = "", processes: int = 0
) -> PhotoTable:
    """Finds the photos in the tars `images_*.tar` of their folder.

    Args:
      photos: a table of GLDv2's photos whose root holds the tars.
      notes: folder for the notes on what each tar holds.
      md5_dir: folder with GLDv2's `md5.images_000.txt` and so on; empty: no check.
      processes: how many work at once; 0: one per core.

    Returns:
      The table with `places`. Photos that are in none of the tars stay in it, to be found missing.

    Raises:
      InputError: naming the tar, when it is damaged, cut short, or has a wrong or unknown MD5, or
        when a listed photo is in the tars twice.
    """
    tars, notes = find_tars(photos.root), pathlib.Path(notes)
    notes.mkdir(parents=True, exist_ok=True)
    index = functools.partial(_index, notes=notes, md5_dir=md5_dir)
    done = run_in_processes(index, tars, process_count(processes, len(tars)))
    for _ in progress.track(done, len(tars), "tars", "files"):
        pass
    places = Places(
        tuple(map(str, tars)),
        np.full(len(photos), -1, np.int16),
        np.zeros(len(photos), np.int64),
        np.zeros(len(photos), np.uint32),
    )
    by_id = np.argsort(photos.ids, kind="stable").astype(np.int32)
    ids = photos.ids[by_id]
    for number, tar in enumerate(tars):
        with np.load(notes / f"{tar.stem}.npz") as found:
            names, offsets, sizes = (found[key] for key in ("ids", "offsets", "sizes"))
        known = np.char.str_len(names) <= ids.itemsize
        names, offsets, sizes = names[known].astype(ids.dtype), offsets[known], sizes[known]
        near = np.minimum(np.searchsorted(ids, names), len(ids) - 1)
        listed = ids[near] == names
        rows = by_id[near[listed]]
        _refuse_twice(photos, places, rows, tar)
        places.tar[rows] = number
        places.offset[rows], places.size[rows] = offsets[listed], sizes[listed]
    log.info("%d of %d photos are in %d tars", (places.tar >= 0).sum(), len(photos), len(tars))
    return dataclasses.replace(photos, places=places)


def _refuse_twice(photos: PhotoTable, places: Places, rows: np.ndarray, tar: pathlib.Path) -> None:
    before = rows[places.tar[rows] >= 0]
    if len(before):
        name, other = photos.ids[before[0]].decode(), places.tars[places.tar[before[0]]]
        raise InputError(f"{tar}: image {name} is in {other} too; keep one of them")
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        name = photos.ids[values[counts > 1][0]].decode()
        raise InputError(f"{tar}: image {name} is in it twice; {_MEND}")
