"""Photo files -> one TFRecord file: the work of one process of the records builder.

No TensorFlow here: a process starts in a fraction of a second and needs little memory.
"""

import collections
import contextlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from dolg_tf.data.records import tfrecord
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

JPEG_QUALITY = 95  # of re-encoded photos
LEFT_OUT = ("missing", "corrupt", "unsupported")
ENCODED_AGAIN = ("non_jpeg", "grey", "cmyk")
KINDS = (*LEFT_OUT, *ENCODED_AGAIN, "exif_rotated")  # of odd photos
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with more pictures after the first
ODD_HEADER = "id\tpath\tkind\tdetail\n"  # of the list of odd photos
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Photo(NamedTuple):
    """One photo of a list."""

    id: str
    path: str  # of the photo's file, or of the tar that holds it
    label: int
    offset: int = 0  # bytes, in the tar
    size: int = -1  # bytes, in the tar; -1: the whole file


class Shard(NamedTuple):
    """A record file to write."""

    path: pathlib.Path
    photos: Sequence[Photo]
    strict: bool


class Encoded(NamedTuple):
    """A photo as it goes into a record."""

    jpeg: bytes  # RGB
    height: int  # pixels
    width: int  # pixels
    kind: str  # one of ENCODED_AGAIN; empty: the bytes are the photo's own
    source: str  # what it was: "PNG RGBA"
    orientation: int  # of EXIF, 1 to 8; above 1 viewers show the photo turned or mirrored

    def oddities(self) -> Iterator[tuple[str, str]]:
        """Yields kind and detail of each oddity of the photo."""
        if self.kind:
            yield self.kind, self.source
        if self.orientation > 1:
            yield "exif_rotated", f"orientation {self.orientation}"


class UnusablePhoto(ValueError):
    """A photo that is left out."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason  # kind: one of LEFT_OUT


def read_photo(photo: Photo) -> bytes:
    """Returns the bytes of a photo, from its file or from the tar that holds it.

    Raises:
      UnusablePhoto: when it is missing.
      InputError: when it exists but cannot be read: that is the disk's fault, not the photo's.
    """
    try:
        if photo.size < 0:
            return pathlib.Path(photo.path).read_bytes()
        with pathlib.Path(photo.path).open("rb", buffering=0) as tar:
            return os.pread(tar.fileno(), photo.size, photo.offset)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnusablePhoto("missing", "no such file") from error
    except OSError as error:
        raise InputError(f"{photo.path}: cannot be read ({error.strerror})") from error


def decode_small(image: Image.Image) -> None:
    """Decodes an opened picture; a JPEG, at an eighth of its size.

    This shows just as well whether all of its data is there, in half the time.

    Raises whatever Pillow raises on damaged data.
    """
    image.draft(None, (image.width // 8, image.height // 8))
    image.load()


def encode_photo(data: bytes) -> Encoded:
    """Returns a photo as RGB JPEG: its own bytes if it is one, else re-encoded.

    Pixels stay as they are stored: a photo that EXIF rotates is not turned.

    Raises:
      UnusablePhoto: on data that cannot be decoded, or more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise UnusablePhoto("unsupported", f"{image.format} with pixels of {image.mode}")
            return _encode(data, image)
    except (UnusablePhoto, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        # The message on an unknown format names an object in memory, which differs in each run.
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise UnusablePhoto("corrupt", reason) from error


def _encode(data: bytes, image: Image.Image) -> Encoded:
    width, height = image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    orientation = orientation if orientation in range(2, 9) else 1
    is_jpeg = image.format in JPEG_FORMATS
    if is_jpeg and image.mode == "RGB":
        decode_small(image)
        return Encoded(data, height, width, "", "", orientation)
    kind = {"L": "grey", "CMYK": "cmyk"}[image.mode] if is_jpeg else "non_jpeg"
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY)
    source = f"{image.format} {image.mode}"
    return Encoded(out.getvalue(), height, width, kind, source, orientation)


def odd_line(photo: Photo, kind: str, detail: str) -> str:
    """Returns a line of the list of odd photos: id, path, kind and detail, tab-separated."""
    cells = (photo.id, photo.path, kind, detail)
    return "\t".join(" ".join(cell.splitlines()).replace("\t", " ") for cell in cells) + "\n"


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silences Pillow's remarks on odd EXIF: there are thousands in millions of photos."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


class _Notes:
    """What happened to the photos of one record file."""

    def __init__(self):
        self.kinds, self.left_out, self.lines = collections.Counter(), [], []

    def add(self, photo: Photo, kind: str, detail: str) -> None:
        self.kinds[kind] += 1
        self.lines.append(odd_line(photo, kind, detail))
        if kind in LEFT_OUT:
            self.left_out.append(photo.label)


def _examples(shard: Shard, notes: _Notes) -> Iterator[bytes]:
    for photo in shard.photos:
        try:
            encoded = encode_photo(read_photo(photo))
        except UnusablePhoto as error:
            if shard.strict:
                what = f"{error.kind}: {error.reason}"
                raise InputError(
                    f"{photo.path}: {what} (image {photo.id}; --strict is set)"
                ) from error
            notes.add(photo, error.kind, error.reason)
            continue
        for kind, detail in encoded.oddities():
            notes.add(photo, kind, detail)
        size = (encoded.height, encoded.width)
        yield tfrecord.encode(encoded.jpeg, photo.id, *size, photo.label)


def write_shard(shard: Shard) -> dict:
    """Writes one record file, and beside it what happened to its photos.

    `NAME.tsv` lists the odd ones. `NAME.json`, written last, holds what this function returns.

    Returns:
      {"records": count, "kinds": {kind: count}, "left_out": [label, ...]}.

    Raises:
      InputError: on a photo that would be left out if the shard is strict, on a photo that cannot
        be read, and when the file cannot be written.
    """
    notes = _Notes()
    try:
        with quiet_pillow():
            count = tfrecord.write_shard(shard.path, _examples(shard, notes))
        files.write_text(f"{shard.path}.tsv", "".join(notes.lines))
        result = {"records": count, "kinds": dict(notes.kinds), "left_out": notes.left_out}
        files.write_json(f"{shard.path}.json", result)
    except OSError as error:
        raise InputError(
            f"{shard.path} cannot be written ({error.strerror}); finished files are kept: fix this "
            "and run the same command again"
        ) from error
    return result
