"""The one rule for photos: which are taken, how they are decoded and turned.

Whoever decodes outside a graph asks here. `images.decode`, the same inside a graph, gives the same
pixels for JPEG, PNG, GIF, WebP and BMP, or fails; the other formats it does not know.

Pixels are those that the file stores, as RGB of 8 bits: of 16 bits the high byte counts, CMYK is
read as Adobe writes it, whether its marker is there or not, transparency and colour profiles are
ignored, and of several frames the first is taken, on its canvas (black where it does not reach, and
where a GIF is transparent). No TensorFlow here.
"""

import contextlib
import dataclasses
import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from dolg_tf.data.formats import containers, jpeg_header
from dolg_tf.data.formats.jpeg_header import UnusablePhoto
from dolg_tf.stage import files, installed
from dolg_tf.stage.config import InputError

# Phones take up to 200 million pixels, which is 0.6 GB of levels.
MAX_PIXELS = 2**28
_MAX_BYTES = 2**30  # of a file: more than any photo of so many pixels has

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes in bytes, of all its versions
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
FORMATS = (*dict.fromkeys(_MAGIC.values()), "BMP", "WEBP", "AVIF", "HEIC")
_ORIENTATION = 0x0112  # EXIF tag
_REDUCTIONS = (8, 4, 2)  # of libjpeg
_PIXELS_AT_ONCE = 2**22  # copied out of Pillow: all at once would take three times the memory
_NO_MEMORY = "too large for this machine's memory"
_EXAMINED = {"JPEG", "PNG", "GIF", "WEBP"}  # by our own readers; Pillow sees no metadata of theirs
_FILTERS = threading.Lock()


class Header(NamedTuple):
    """Format and size of a photo, and how it is turned."""

    format: str  # one of FORMATS
    mode: str  # as Pillow calls it: "RGB", "L", "CMYK", "P"
    height: int  # pixels, as stored
    width: int  # pixels, as stored
    orientation: int  # of EXIF, 1 to 8; above 1 viewers show the photo turned or mirrored


def read_file(path: files.Path) -> bytes:
    """Returns the bytes of a photo's file.

    Raises:
      UnusablePhoto: when it is not a file, but a folder, pipe or device, or too large.
      FileNotFoundError: when there is none of that name.
      OSError: when it cannot be read: that is the disk's fault, not the photo's.
    """
    try:
        # Unless told not to, opening a pipe waits for a writer.
        with open(path, "rb", opener=lambda path, how: os.open(path, how | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UnusablePhoto("corrupt", "not a file")
            if about.st_size > _MAX_BYTES:
                size = f"{about.st_size >> 20} MiB, more than {_MAX_BYTES >> 20}"
                raise UnusablePhoto("too_large", f"a file of {size}")
            return file.read()
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        # A folder, a socket, a device without a driver.
        if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise UnusablePhoto("corrupt", "not a file") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UnusablePhoto("corrupt", error.strerror) from error
        raise


def sniff(head: bytes) -> str | None:
    """Returns the format of a photo by its first 64 bytes, one of FORMATS; None: not a photo."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    # Two letters alone would also begin a text.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4]), 64)
        brands = {head[at : at + 4] for at in (8, *range(16, end - 3, 4))}
        return "AVIF" if brands & _AVIF else "HEIC" if brands & _HEIC else None
    return None


def read_header(data: bytes) -> Header:
    """Returns format, size and orientation of an encoded photo, without decoding it.

    Raises:
      UnusablePhoto: when it is none, or one that `decode` would refuse at sight.
    """
    return examine(data).header


@dataclasses.dataclass(frozen=True, slots=True)
class Examined:
    """An encoded photo whose header was read: for who needs that before decoding."""

    header: Header
    pixels: Callable[[int], np.ndarray]  # decodes as stored, at a size for `reduce_to`

    def decode(
        self, *, upright: bool, max_pixels: int = MAX_PIXELS, reduce_to: int = 0
    ) -> np.ndarray:
        """Decodes the photo, as the function `decode` does."""
        image = self.decode_unturned(max_pixels=max_pixels, reduce_to=reduce_to)
        with _telling(quiet=False):
            return turn(image, self.turning(upright=upright))

    def turning(self, *, upright: bool) -> int:
        """Returns the EXIF orientation by which `decode_unturned` is turned to be `decode`."""
        orientation = self.header.orientation
        if self.header.format != "TIFF" or orientation == 1:
            return orientation if upright else 1
        return 1 if upright else {6: 8, 8: 6}.get(orientation, orientation)  # Pillow has turned it

    def decode_unturned(self, *, max_pixels: int = MAX_PIXELS, reduce_to: int = 0) -> np.ndarray:
        """Decodes the photo, neither turned nor turned back: a TIFF comes upright, others do not.

        The blocks of a reduced photo begin at the left and top of these pixels.
        """
        header = self.header
        pixels = header.height * header.width
        if 0 < max_pixels < pixels:
            size = f"{header.width} x {header.height} = {pixels / 1e6:.1f} million pixels"
            raise UnusablePhoto("too_large", f"{size}, more than {max_pixels / 1e6:g} million")
        with _telling(quiet=header.format == "TIFF"):
            return self.pixels(reduce_to)


def examine(data: bytes) -> Examined:
    """Reads the header of an encoded photo, and refuses what cannot be decoded at sight.

    Raises:
      UnusablePhoto: see `decode`.
    """
    name = sniff(data[:64])
    with _telling(quiet=name not in _EXAMINED):
        return _examine(name, data)


def decode(
    data: bytes, *, upright: bool, max_pixels: int = MAX_PIXELS, reduce_to: int = 0
) -> np.ndarray:
    """Decodes a photo.

    Args:
      data: the encoded photo, or anything else.
      upright: turn it by its EXIF orientation. A HEIC is always turned, by its container.
      max_pixels: a photo of more pixels is refused; 0: none is.
      reduce_to: a photo other than a GIF is decoded at 1/2, 1/4 or 1/8, as long as its longest
        side stays at or above this, pixels; 0: not reduced. A reduced photo is the mean of blocks
        of pixels. A JPEG takes less memory, and others no more than they take undecoded by Pillow.

    Returns:
      uint8 RGB (H, W, 3).

    Raises:
      UnusablePhoto: when it cannot be decoded, ends too early, or is too large.
    """
    return examine(data).decode(upright=upright, max_pixels=max_pixels, reduce_to=reduce_to)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a photo (H, W, C) upright by its EXIF orientation, 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


@contextlib.contextmanager
def _telling(*, quiet: bool) -> Iterator[None]:
    """Turns whatever goes wrong with a photo into UnusablePhoto.

    Args:
      quiet: silence Pillow's remarks; one thread at a time.
    """
    try:
        with _quiet() if quiet else contextlib.nullcontext():
            yield
    except UnusablePhoto:
        raise
    except MemoryError as error:
        raise UnusablePhoto("too_large", _NO_MEMORY) from error
    except Image.DecompressionBombError as error:
        raise UnusablePhoto("too_large", "more pixels than Pillow decodes at once") from error
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        if "out of memory" in reason:
            raise UnusablePhoto("too_large", _NO_MEMORY) from error
        kind = "unsupported" if reason.lower().startswith("unsupported") else "corrupt"
        raise UnusablePhoto(kind, reason) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's remarks on odd metadata; filters of warnings are the whole process's."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


# --- formats ------------------------------------------------------------------------------


def _examine(name: str | None, data: bytes) -> "Examined":
    if name is None:
        raise UnusablePhoto("corrupt", "not a picture")
    if name == "JPEG":
        jpeg = jpeg_header.read(data)
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[jpeg.components]
        header = Header(name, mode, jpeg.height, jpeg.width, jpeg.orientation)
        return Examined(header, lambda reduce_to: _decode_jpeg(jpeg, reduce_to))
    reader = {
        "PNG": containers.read_png,
        "GIF": containers.read_gif,
        "WEBP": containers.read_webp,
    }.get(name)
    if reader:
        part = reader(data)
        if not part.height or not part.width:
            raise UnusablePhoto("corrupt", f"its size is {part.width} x {part.height}")
        header = Header(name, part.mode, part.height, part.width, part.orientation)
        return Examined(header, lambda reduce_to: _decode_part(name, part, reduce_to))
    image = _open(name, data)
    turned = _exif_orientation(image)
    width, height = image.size
    if name == "TIFF" and turned >= 5:  # Pillow states the size that it has when turned
        width, height = height, width
    return Examined(
        Header(name, image.mode, height, width, turned), lambda reduce_to: _rgb(image, reduce_to)
    )


def _open(name: str, data: bytes) -> Image.Image:
    """Opens a photo by Pillow's reader of its format alone, which has no bound of its own."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    readers = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    }
    reader = readers[name] if name in readers else _heic_reader()
    return reader(io.BytesIO(data))


def _heic_reader():
    try:
        installed.need("photos", "HEIC", "pillow_heif")
    except InputError as error:
        raise UnusablePhoto("unsupported", str(error)) from error
    import pillow_heif

    return pillow_heif.HeifImageFile


def _exif_orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever a damaged EXIF makes it raise
        return 1
    return found if found in range(1, 9) else 1


# --- pixels -------------------------------------------------------------------------------


def reduction(longest: int, reduce_to: int) -> int:
    """Returns by how much a photo of this longest side is reduced: 8, 4, 2 or 1."""
    fitting = (times for times in _REDUCTIONS if -(-longest // times) >= reduce_to > 0)
    return next(fitting, 1)


def _decode_jpeg(jpeg: jpeg_header.JpegHeader, reduce_to: int) -> np.ndarray:
    # `draft` writes beyond its memory on lossless JPEGs: `jpeg_header` has refused them.
    image = _open("JPEG", jpeg.plain)
    times = reduction(max(jpeg.height, jpeg.width), reduce_to)
    if times > 1:
        image.draft(None, (max(1, jpeg.width // times), max(1, jpeg.height // times)))
    return _rgb(image)


def _decode_part(name: str, part: containers.Container, reduce_to: int) -> np.ndarray:
    image = _open(name, part.plain)
    if name != "GIF":
        return _rgb(image, reduce_to)
    image.load()
    indices, transparent = np.asarray(image), image.info.get("transparency")
    if indices.max() >= part.colours:
        raise UnusablePhoto("corrupt", "a colour that its palette lacks")
    frame = _rgb(image)
    if transparent is not None:
        frame[indices == transparent] = 0
    height, width = frame.shape[:2]
    if (height, width) == (part.height, part.width):
        return frame
    canvas = np.zeros((part.height, part.width, 3), np.uint8)
    canvas[part.top : part.top + height, part.left : part.left + width] = frame
    return canvas


def _rgb(image: Image.Image, reduce_to: int = 0) -> np.ndarray:
    """Decodes an opened picture to uint8 RGB (H, W, 3)."""
    image.load()
    image.info.pop("transparency", None)
    width, height = image.size
    times = reduction(max(width, height), reduce_to)
    out = np.empty((-(-height // times), -(-width // times), 3), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // width // times) * times
    for row in range(0, height, rows):
        part = image.crop((0, row, width, min(row + rows, height)))
        levels = _levels(part, image.format)
        if times > 1:
            levels = np.broadcast_to(levels, (*levels.shape[:2], 3))
            levels = np.asarray(Image.fromarray(np.ascontiguousarray(levels)).reduce(times))
        out[row // times : row // times + len(levels)] = levels
    return out


def _levels(image: Image.Image, name: str) -> np.ndarray:
    """Returns the levels of a decoded picture: uint8 RGB (H, W, 3) or grey (H, W, 1)."""
    mode = image.mode
    if mode == "CMYK" and name == "JPEG":  # rounded as TensorFlow rounds it
        light = 255 - np.asarray(image).astype(np.uint16)
        return light[:, :, :3] * light[:, :, 3:] // 255
    if mode.startswith("I;16") or (mode, name) == ("I", "PNG"):
        return (np.asarray(image) >> 8)[:, :, None]
    if mode.startswith(("I", "F")):
        raise UnusablePhoto("unsupported", f"{name} with pixels of {mode}")
    if mode in ("La", "RGBa"):  # colours times their alpha
        image = image.convert(mode.upper())
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))
