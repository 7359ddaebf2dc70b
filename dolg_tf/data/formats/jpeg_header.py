"""What a JPEG says of itself, read by walking its segments as libjpeg does, without decoding.

Decoders are handed what this walk accepted, and no more: the segments that say how the pixels are
stored, none that hold remarks, previews or further pictures.

Reference: ITU-T T.81, annex B; orientation: EXIF 2.32, 4.6.4.
"""

import re
from typing import NamedTuple

# Ordinary progressive photos have about 10 scans. Each takes up to the time of a whole photo, and
# may be written in a few bytes.
MAX_SCANS = 32
# Ordinary photos have 10 to 20 segments, those with depth maps or long profiles a few hundred.
MAX_SEGMENTS = 4096

# libjpeg passes over anything between segments; inside a scan, 0 and restart markers belong to it.
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
END, SCAN, EXIF = 0xD9, 0xDA, 0xE1
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD}
_REMARKS = {*range(0xE0, 0xF0), 0xFE}
_OF_COLOUR = {0xE0, 0xEE}  # JFIF's and Adobe's: they say which colours the components are
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # Huffman and arithmetic coding, one scan or progressive
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
SHORT, ORIENTATION = 3, 0x0112  # type and tag of an EXIF entry


class UnusablePhoto(ValueError):
    """A photo that cannot be taken.

    Attributes:
      kind: "corrupt", "unsupported" or "too_large"; whoever reads files adds "missing".
      reason: what is wrong, in words that fit behind "kind: ".
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class JpegHeader(NamedTuple):
    """Size and coding of a JPEG."""

    height: int  # pixels
    width: int  # pixels
    components: int  # 1 grey, 3 RGB, 4 CMYK or YCCK
    orientation: int  # of EXIF, 1 to 8
    plain: bytes  # the JPEG without remarks, previews and whatever follows it


def read(data: bytes) -> JpegHeader:
    """Reads the segments of a JPEG, from its first byte to its end marker.

    Raises:
      UnusablePhoto: when it ends too early; is lossless, hierarchical or not of 8 bits; or has more
        than `MAX_SCANS` scans or `MAX_SEGMENTS` segments.
    """
    frame, exif, scans, pieces = None, None, 0, [b"\xff\xd8"]
    at, marker, begin = 2, _MARKER, 0
    for _ in range(MAX_SEGMENTS + 1):
        found = marker.search(data, at)
        if begin:  # the scan before
            pieces.append(data[begin : found.start() if found else len(data)])
        if not found:
            raise UnusablePhoto("corrupt", "it ends before its end marker")
        code, at, begin = data[found.end() - 1], found.end(), 0
        marker = _MARKER
        if code == END:
            break
        if code in _ALONE:
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2]))
        body = data[at + 2 : end]
        at = end
        if code == SCAN:
            scans += 1
            begin, marker = found.start(), _AFTER_SCAN
            if scans > MAX_SCANS:
                raise UnusablePhoto("too_large", f"more than {MAX_SCANS} scans")
        elif code in _FRAMES:
            if frame:
                raise UnusablePhoto("corrupt", "two frames in one JPEG")
            frame = _frame(code, body)
        elif code == EXIF and not scans and exif is None and body.startswith(b"Exif\0\0"):
            exif = body[6:]
        elif code not in _TABLES and code not in _REMARKS:
            raise UnusablePhoto("corrupt", f"marker FF{code:02X} is not one of a JPEG")
        if not begin and (code not in _REMARKS or code in _OF_COLOUR):
            pieces.append(b"\xff%c" % code + data[found.end() : end])
    else:
        raise UnusablePhoto("too_large", f"more than {MAX_SEGMENTS} segments")
    if not frame or not scans:
        raise UnusablePhoto("corrupt", "no picture in it")
    plain = b"".join([*pieces, b"\xff\xd9"])
    return JpegHeader(*frame, orientation(exif or b""), plain)


def _frame(code: int, body: bytes) -> tuple[int, int, int]:
    """Returns height, width and number of components."""
    if code not in _DECODED:
        kind = "lossless" if code in _LOSSLESS else "hierarchical"
        raise UnusablePhoto("unsupported", f"a {kind} JPEG")
    if len(body) < 6:
        raise UnusablePhoto("corrupt", "it ends before its end marker")
    precision, components = body[0], body[5]
    if precision != 8:
        raise UnusablePhoto("unsupported", f"a JPEG of {precision} bits per channel")
    if components not in (1, 3, 4):
        raise UnusablePhoto("unsupported", f"a JPEG of {components} channels")
    height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    if not height or not width:
        raise UnusablePhoto("corrupt", f"its size is {width} x {height}")
    return height, width, components


def orientation(exif: bytes) -> int:
    """Returns the orientation that an EXIF block states, 1 to 8; 1 without a readable one.

    Args:
      exif: from its byte order, `II` or `MM`, on.
    """
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    padded = exif + bytes(4)

    def number(at, size):
        return int.from_bytes(padded[at : at + size], order)

    first = number(4, 4) + 2
    for entry in range(first, min(first + 12 * number(first - 2, 2), len(exif) - 11), 12):
        if number(entry, 2) == ORIENTATION:
            value = number(entry + 8, 2)
            one_short = number(entry + 2, 2) == SHORT and number(entry + 4, 4) == 1
            return value if one_short and 1 <= value <= 8 else 1
    return 1
