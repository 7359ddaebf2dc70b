"""Photo files -> one TFRecord file: what a process of the records builder does.

No TensorFlow here: a process starts in a fraction of a second and needs little memory.
"""

import collections
import io
import os
import pathlib
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from multiprocessing import get_context, parent_process
from typing import NamedTuple

from PIL import Image

from dolg_tf import files
from dolg_tf.config import InputError
from dolg_tf.data import records

JPEG_QUALITY = 95  # of photos that are encoded again
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind the first
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Photo(NamedTuple):
    """One photo of a list."""

    id: str
    path: str
    label: int


class Shard(NamedTuple):
    """One record file to be written."""

    path: pathlib.Path
    photos: list[Photo]
    strict: bool


class _Encoded(NamedTuple):
    jpeg: bytes
    height: int
    width: int
    source: str  # "PNG RGBA", for photos that were encoded again
    rotated: bool  # by EXIF


def _encode(data: bytes) -> _Encoded:
    """Returns a photo as RGB JPEG: its own bytes when it is one, else encoded again.

    Raises whatever Pillow raises on data that it cannot decode.
    """
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        rotated = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
        if image.format in _JPEG_FORMATS and image.mode == "RGB":
            # An eighth of the size tells as well whether the data is whole, in half the time.
            image.draft("RGB", (width // 8, height // 8))
            image.load()
            return _Encoded(data, height, width, "", rotated)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {image.mode} have no place in 8 bits")
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY)
        source = f"{image.format} {image.mode}"
        return _Encoded(out.getvalue(), height, width, source, rotated)


def write_shard(shard: Shard) -> dict:
    """Writes one record file, and beside it what became of its photos (`NAME.json`).

    Returns:
      {"records": count, "bad": [[id, label, path, reason]], "reencoded": {source: count},
      "exif_rotated": count}.

    Raises:
      InputError: on a bad photo when the shard is strict.
    """
    bad, reencoded, rotated = [], collections.Counter(), 0

    def examples() -> Iterator[bytes]:
        nonlocal rotated
        for photo in shard.photos:
            try:
                encoded = _encode(pathlib.Path(photo.path).read_bytes())
            except FileNotFoundError:
                reason = "missing"
            except Exception as error:  # Pillow's decoders raise anything on damaged data
                reason = f"undecodable: {' '.join(str(error).split()) or type(error).__name__}"
            else:
                rotated += encoded.rotated
                if encoded.source:
                    reencoded[encoded.source] += 1
                size = (encoded.height, encoded.width)
                yield records.encode(encoded.jpeg, photo.id, *size, photo.label)
                continue
            if shard.strict:
                raise InputError(f"{photo.path}: {reason} (image {photo.id}; --strict is set)")
            bad.append([photo.id, photo.label, photo.path, reason])

    count = records.write_shard(shard.path, examples())
    result = {
        "records": count,
        "bad": bad,
        "reencoded": dict(reencoded),
        "exif_rotated": rotated,
    }
    files.write_json(f"{shard.path}.json", result)
    return result


def _start_process() -> None:
    """Lets a process end with its parent: at Ctrl-C at once, and when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write_shards(shards: Iterable[Shard], processes: int) -> Iterator[dict]:
    """Writes record files in many processes and yields their results as they come."""
    if processes == 1:
        yield from map(write_shard, shards)
        return
    pool = futures.ProcessPoolExecutor(processes, get_context("spawn"), _start_process)
    try:
        waiting = [pool.submit(write_shard, shard) for shard in shards]
        for done in futures.as_completed(waiting):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
