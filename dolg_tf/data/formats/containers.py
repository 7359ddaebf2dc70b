"""What a PNG, GIF or WebP says of itself, read without decoding, and the part that is the photo.

The rest, remarks, profiles and further frames, is kept from decoders: it may unpack to any size.

References: PNG, third edition; GIF89a, 18 to 23; the WebP container.
"""

import itertools
from typing import NamedTuple

from dolg_tf.data.formats.jpeg_header import UnusablePhoto, orientation

MAX_CHUNKS = 2**13  # that are searched for an EXIF block
_CUT = UnusablePhoto("corrupt", "it ends too early")
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by colour type


class Container(NamedTuple):
    """Size of a photo, and what a decoder needs of its file."""

    height: int  # pixels
    width: int  # pixels
    mode: str  # as Pillow calls it
    orientation: int  # of EXIF, 1 to 8
    plain: bytes  # the encoded photo alone
    top: int = 0  # place on the canvas of what `plain` holds, pixels
    left: int = 0
    colours: int = 256  # of the palette


def read_png(data: bytes) -> Container:
    """Reads the chunks of a PNG.

    Raises:
      UnusablePhoto: when the header or the end is missing.
    """
    at, pieces, exif = 8, [data[:8]], b""
    for number in itertools.count():
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(kind) < 4 or end > len(data):
            raise _CUT
        if kind == b"eXIf":
            if not exif and number < MAX_CHUNKS:
                exif = data[at + 8 : end - 4]
        elif kind == b"tRNS" or not kind[0] & 32:  # small letters: remarks
            pieces.append(data[at:end])
        at = end
        if kind == b"IEND":
            break
    head = data[8:33]
    if head[4:8] != b"IHDR":
        raise UnusablePhoto("corrupt", "it does not begin with its size")
    width, height = int.from_bytes(head[8:12]), int.from_bytes(head[12:16])
    mode = _PNG_MODES.get(head[17], "?")
    return Container(height, width, mode, orientation(exif), b"".join(pieces))


def read_gif(data: bytes) -> Container:
    """Reads a GIF up to the end of its first frame.

    Raises:
      UnusablePhoto: without a whole frame, or without its palette.
    """

    def colours(flags):
        return 2 << flags % 8 if flags & 128 else 0

    def after_blocks(at):
        while data[at]:
            at += 1 + data[at]
        return at + 1

    try:
        at = 13 + 3 * colours(data[10])
        while data[at] == ord("!"):
            at = after_blocks(at + 2)
        if data[at] != ord(","):
            raise UnusablePhoto("corrupt", "no picture in it")
        left, top, width, height = (
            int.from_bytes(data[at + place : at + place + 2], "little") for place in (1, 3, 5, 7)
        )
        palette = colours(data[at + 9])
        end = after_blocks(at + 11 + 3 * palette)
    except IndexError as error:
        raise _CUT from error
    palette = palette or colours(data[10])
    if not palette:
        raise UnusablePhoto("corrupt", "a GIF without a palette")
    canvas = [int.from_bytes(data[place : place + 2], "little") for place in (8, 6)]
    # In the corner of a canvas of its own size.
    size = data[at + 5 : at + 9]
    plain = data[:6] + size + data[10 : at + 1] + b"\0\0\0\0" + data[at + 5 : end] + b";"
    sides = max(canvas[0], top + height), max(canvas[1], left + width)
    return Container(*sides, "P", 1, plain, top, left, palette)


def read_webp(data: bytes) -> Container:
    """Reads the chunks of a WebP.

    Raises:
      UnusablePhoto: when its header cannot be read.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise _CUT
    alpha = False
    if kind == b"VP8 ":
        width, height = (int.from_bytes(body[at : at + 2], "little") % 2**14 for at in (6, 8))
    elif kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        width, height = 1 + packed % 2**14, 1 + (packed >> 14) % 2**14
        alpha = bool(packed >> 28 & 1)
    elif kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
        alpha = bool(body[0] & 16)
    else:
        raise UnusablePhoto("corrupt", "a WebP without a picture")
    return Container(height, width, "RGBA" if alpha else "RGB", orientation(_webp_exif(data)), data)


def _webp_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(MAX_CHUNKS):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
        if at + 8 > len(data):
            break
    return b""
