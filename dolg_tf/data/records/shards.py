"""Photo files -> one TFRecord file: the work of one process of the records builder.

No TensorFlow here: a process starts in a fraction of a second and needs little memory.
"""

import collections
import contextlib
import faulthandler
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from PIL import Image

from dolg_tf.data import photo_files
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.data.records import tfrecord
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

JPEG_QUALITY = 95  # of re-encoded photos
_JPEG_SIDE = 65500  # pixels, the most that libjpeg writes
LEFT_OUT = ("missing", "corrupt", "unsupported", "too_large", "crashed")
ENCODED_AGAIN = ("non_jpeg", "grey", "cmyk")
KINDS = (*LEFT_OUT, *ENCODED_AGAIN, "exif_rotated")  # of odd photos
ODD_HEADER = "id\tpath\tkind\tdetail\n"  # of the list of odd photos


class Photo(NamedTuple):
    """One photo of a list."""

    id: str
    path: str  # of the photo's file, or of the tar that holds it
    label: int
    offset: int = 0  # bytes, in the tar
    size: int = -1  # bytes, in the tar; -1: the whole file


class Rule(NamedTuple):
    """What becomes of photos."""

    upright: bool = False  # turned by their EXIF orientation
    max_pixels: int = photo_files.MAX_PIXELS  # photos of more are left out; 0: none is
    strict: bool = False  # stop at a photo that would be left out


class Shard(NamedTuple):
    """A record file to write."""

    path: pathlib.Path
    photos: Sequence[Photo]
    rule: Rule = Rule()

    @property
    def at_hand(self) -> pathlib.Path:
        """The note of the photo that is being read, and of what killed the process there."""
        return pathlib.Path(f"{self.path}.at")

    @property
    def crashed(self) -> pathlib.Path:
        """The ids of photos that killed a process, one per line."""
        return pathlib.Path(f"{self.path}.crashed")


class Encoded(NamedTuple):
    """A photo as it goes into a record."""

    jpeg: bytes  # RGB
    height: int  # pixels
    width: int  # pixels
    kind: str  # one of ENCODED_AGAIN; empty: the pixels are those of the photo's own JPEG
    source: str  # what it was: "PNG RGBA"
    orientation: int  # of EXIF, 1 to 8; above 1 viewers show the photo turned or mirrored
    turned: bool  # whether it is turned by it

    def oddities(self) -> Iterator[tuple[str, str]]:
        """Yields kind and detail of each oddity of the photo."""
        if self.kind:
            yield self.kind, self.source
        if self.orientation > 1:
            done = ", turned" if self.turned else ""
            yield "exif_rotated", f"orientation {self.orientation}{done}"


def read_photo(photo: Photo) -> bytes:
    """Returns the bytes of a photo, from its file or from the tar that holds it.

    Raises:
      UnusablePhoto: when it is missing, too large, or not a file.
      InputError: when it exists but cannot be read: that is the disk's fault, not the photo's.
    """
    try:
        if photo.size < 0:
            return photo_files.read_file(photo.path)
        with pathlib.Path(photo.path).open("rb", buffering=0) as tar:
            return os.pread(tar.fileno(), photo.size, photo.offset)
    except FileNotFoundError as error:
        raise UnusablePhoto("missing", "no such file") from error
    except OSError as error:
        raise InputError(f"{photo.path}: cannot be read ({error.strerror})") from error


def encode_photo(data: bytes, rule: Rule) -> Encoded:
    """Returns a photo as RGB JPEG: its own bytes if it is one and not turned, else re-encoded.

    Raises:
      UnusablePhoto: on data that cannot be decoded, or that the rule leaves out.
    """
    examined = photo_files.examine(data)
    header = examined.header
    turned = rule.upright and header.orientation > 1
    own = header.format == "JPEG" and header.mode == "RGB" and not turned
    image = examined.decode(
        upright=rule.upright,
        max_pixels=rule.max_pixels,
        # Shows just as well whether all of the data is there, in half the time.
        reduce_to=1 if own else 0,
    )
    if own:
        return Encoded(data, header.height, header.width, "", "", header.orientation, False)
    height, width = image.shape[:2]
    if max(height, width) > _JPEG_SIDE:
        raise UnusablePhoto("too_large", f"{width} x {height}: no JPEG has such a side")
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY)
    kind = "non_jpeg"
    if header.format == "JPEG":
        kind = {"RGB": "", "L": "grey", "CMYK": "cmyk"}[header.mode]
    source = f"{header.format} {header.mode}"
    return Encoded(out.getvalue(), height, width, kind, source, header.orientation, turned)


def odd_line(photo: Photo, kind: str, detail: str) -> str:
    """Returns a line of the list of odd photos: id, path, kind and detail, tab-separated."""
    cells = (photo.id, photo.path, kind, detail)
    return "\t".join(" ".join(cell.splitlines()).replace("\t", " ") for cell in cells) + "\n"


class _Notes:
    """What happened to the photos of one record file."""

    def __init__(self):
        self.kinds, self.left_out, self.lines = collections.Counter(), [], []

    def add(self, photo: Photo, kind: str, detail: str) -> None:
        self.kinds[kind] += 1
        self.lines.append(odd_line(photo, kind, detail))
        if kind in LEFT_OUT:
            self.left_out.append(photo.label)


@contextlib.contextmanager
def _crash_note(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens the note of the photo at hand; a native crash of this process is added to it."""
    before = faulthandler.is_enabled()
    with path.open("wb", buffering=0) as note:
        faulthandler.enable(note, all_threads=False)
        try:
            yield note
        finally:
            faulthandler.disable()
            if before:
                with contextlib.suppress(Exception):  # where standard error is no file
                    faulthandler.enable()
    path.unlink()


def read_crash_note(path: pathlib.Path) -> tuple[str, str]:
    """Returns the id of the photo at which a process died, and how; "" if not by a crash."""
    try:
        name, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ValueError):
        return "", ""
    fatal = [line for line in lines if line.startswith("Fatal Python error: ")]
    return name, fatal[0].partition(": ")[2] if fatal else ""


def _examples(shard: Shard, notes: _Notes, at_hand: IO[bytes]) -> Iterator[bytes]:
    crashed = set()
    if shard.crashed.exists():
        crashed = set(shard.crashed.read_text(encoding="utf-8").splitlines())
    for photo in shard.photos:
        try:
            if photo.id in crashed:
                raise UnusablePhoto("crashed", "its decoder killed the process")
            at_hand.seek(0)
            at_hand.truncate()
            at_hand.write(f"{photo.id}\n".encode())
            encoded = encode_photo(read_photo(photo), shard.rule)
        except UnusablePhoto as error:
            if shard.rule.strict:
                raise InputError(
                    f"{photo.path}: {error} (image {photo.id}; --strict is set)"
                ) from error
            notes.add(photo, error.kind, error.reason)
            continue
        for kind, detail in encoded.oddities():
            notes.add(photo, kind, detail)
        size = (encoded.height, encoded.width)
        upright = shard.rule.upright
        yield tfrecord.encode(encoded.jpeg, photo.id, *size, photo.label, upright=upright)


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
        with _crash_note(shard.at_hand) as at_hand:
            count = tfrecord.write_shard(shard.path, _examples(shard, notes, at_hand))
        files.write_text(f"{shard.path}.tsv", "".join(notes.lines))
        result = {"records": count, "kinds": dict(notes.kinds), "left_out": notes.left_out}
        files.write_json(f"{shard.path}.json", result)
    except OSError as error:
        raise InputError(
            f"{shard.path} cannot be written ({error.strerror}); finished files are kept: fix this "
            "and run the same command again"
        ) from error
    return result
