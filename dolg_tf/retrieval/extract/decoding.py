"""An encoded photo becomes the pixels that are described: decoded, turned, cut and shrunk."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from dolg_tf.data import photo_files
from dolg_tf.retrieval.extract.photos import Photo, PhotosConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

Hold = Callable[[int], None]
"""Is told how many bytes a photo takes while it is decoded, and may wait until they are free."""

# A large photo is decoded at 1/2, 1/4 or 1/8, but at no less than so many times its final size:
# cosines of its descriptors to those of the whole photo stay above 0.999, see docs/limits.md.
_REDUCED = 2.5
_PADDED = 16  # most photos that would fit into a box, which is filled with black
_BYTES = 7  # per pixel: 4 in Pillow's memory, 3 in ours
_CUT_BYTES = 3  # more, where a box is cut out before it is shrunk


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How photos are cut and shrunk.

    Attributes:
      max_side: longest side in pixels; 0: not bounded.
      query_scale: whose side that is where a photo is cut to a box: "photo" or "crop".
      box_rounding: whose rule makes whole pixels of a box: "dolg", "delf" or "how".
      max_pixels: photos with more are refused.
      upright: whether a photo that is given by its path is turned by its EXIF orientation; a
        `Photo` says that itself.
    """

    max_side: int = 0
    query_scale: str = "photo"
    box_rounding: str = "dolg"
    max_pixels: int = photo_files.MAX_PIXELS
    upright: bool = True

    @classmethod
    def asked(cls, settings: PhotosConfig) -> "Preparation":
        """Returns what the options say."""
        return cls(
            settings.max_side, settings.query_scale, settings.box_rounding, settings.max_pixels
        )

    @classmethod
    def of(cls, meta: Mapping) -> "Preparation":
        """Returns what the metadata of a set or an index say."""
        kept = {key: meta[key] for key in ("query_scale", "box_rounding") if meta.get(key)}
        return cls(meta["max_side"] or 0, upright=bool(meta.get("upright")), **kept)


WHOLE = Preparation()
DEFAULT = Preparation(PhotosConfig.max_side)  # of one's own photos, when no option says otherwise


# --- boxes and sizes -------------------------------------------------------------------


def _whole_box(photo: Photo, height: int, width: int, rounding: str) -> tuple[int, int, int, int]:
    """Returns the box of a photo in whole pixels; DELF's and HOW's may leave the photo."""
    if photo.box is None:
        return 0, 0, width, height
    whole = int if rounding == "dolg" else round  # DELF and HOW: halves to even, as Pillow
    left, top, right, bottom = (whole(x) for x in photo.box)
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    wrong = inside[0] >= inside[2] or inside[1] >= inside[3]
    far = rounding != "dolg" and (right - left) * (bottom - top) > _PADDED * height * width
    if wrong or far:
        raise InputError(
            f"{photo.where}: the box {photo.box} has {'no' if wrong else 'hardly a'} pixel of its "
            f"{width} x {height}; correct the ground truth, or use --nocrop_queries"
        )
    return inside if rounding == "dolg" else (left, top, right, bottom)


def _before_turning(
    box: tuple[int, int, int, int], height: int, width: int, orientation: int
) -> tuple[int, int, int, int]:
    """Returns where a box of a photo of this size lies in the pixels before `photo_files.turn`."""
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def _inside(box: tuple[int, int, int, int], height: int, width: int) -> bool:
    return min(box) >= 0 and box[2] <= width and box[3] <= height


def _factor(height: int, width: int, box: tuple[int, int, int, int], how: Preparation) -> float:
    """Returns the factor, at most 1, by which the part of a photo in a box is shrunk.

    Reference: research/delf, delg/extract_features.py: a query's longest side is bounded by
    max_side x longest(crop) / longest(photo), so that it keeps its photo's scale.
    """
    if how.query_scale == "photo":
        longest = max(height, width)
    else:
        longest = max(box[2] - box[0], box[3] - box[1])
    return min(1.0, how.max_side / longest) if how.max_side else 1.0


def _scaled(side: float, factor: float) -> int:
    return max(1, round(side * factor))


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Returns uint8 RGB (H, W, 3), shrunk to a longest side of `max_side` pixels; 0: unchanged."""
    height, width = image.shape[:2]
    box = (0, 0, width, height)
    return _cut(image, box, _factor(height, width, box, Preparation(max_side)))


def _cut(
    image: np.ndarray, box: tuple[int, int, int, int], factor: float, times: int = 1
) -> np.ndarray:
    """Returns the part in a box, scaled; what lies outside the photo is black.

    Args:
      image: uint8 RGB (H, W, 3), the photo or the means of its blocks of `times` x `times` pixels.
      box: (left, top, right, bottom) in pixels of the photo.
      factor: at most 1.
      times: 1 where the box leaves the photo.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box
    if factor == 1 and _inside(box, height, width):
        part = image[top:bottom, left:right]
        return part if part.size == image.size else part.copy()  # so that the rest is freed
    corner = left // times, top // times
    end = -(-right // times), -(-bottom // times)
    if _inside((*corner, *end), height, width):  # Pillow would refuse to crop a large photo
        part = Image.fromarray(np.ascontiguousarray(image[corner[1] : end[1], corner[0] : end[0]]))
    else:
        part = Image.fromarray(image).crop((*corner, *end))
    if factor < 1:
        size = _scaled(right - left, factor), _scaled(bottom - top, factor)
        inner = [side / times - corner[place % 2] for place, side in enumerate(box)]
        # Antialiased, since a photo may be shrunk a lot here; the network's scales resample it
        # later.
        part = part.resize(size, Image.Resampling.BILINEAR, box=inner)
    return np.asarray(part)


# --- photos ----------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A photo as it is described.

    Attributes:
      image: uint8 RGB (H, W, 3).
      size: height and width in pixels before it was shrunk; of its box, where it was cut to one.
    """

    image: np.ndarray
    size: tuple[int, int]


def load_photo(
    photo: Photo, how: Preparation = WHOLE, hold: Hold | None = None
) -> np.ndarray | str:
    """Reads, decodes, turns, cuts and shrinks a photo; see `prepare`.

    Returns:
      uint8 RGB (H, W, 3); or the reason, when the file is missing or cannot be described.
    """
    found = prepare(photo, how, hold)
    return found if isinstance(found, str) else found.image


def prepare(photo: Photo, how: Preparation = WHOLE, hold: Hold | None = None) -> Prepared | str:
    """Reads, decodes, turns, cuts and shrinks a photo.

    Args:
      photo: what to read.
      how: to cut and to shrink it.
      hold: is asked before the photo is decoded.

    Returns:
      The photo; or the reason, when the file is missing or cannot be described.

    Raises:
      InputError: when the box is outside the photo, or the disk fails.
    """
    if photo.fault:
        return f"{photo.where}: {photo.fault}"
    try:
        return _decode(photo, photo.read(), how, hold)
    except FileNotFoundError as error:
        return f"{photo.where}: {error.strerror}"
    except OSError as error:
        # Otherwise a lost disk would turn every photo into a bad one.
        raise InputError(f"{photo.where}: cannot be read ({error.strerror})") from error
    except (MemoryError, Image.DecompressionBombError):  # the latter of a box that is padded
        return f"{photo.where}: too large for the memory"
    except InputError:
        raise
    except ValueError as error:  # no photo, or a damaged record
        return f"{photo.where}: {error}"


def _decode(photo: Photo, data: bytes, how: Preparation, hold: Hold | None) -> Prepared:
    size, examined = len(data), photo_files.examine(data)
    del data  # `examined` has what it needs of it
    header = examined.header
    height, width = header.height, header.width
    if photo.turn and header.orientation >= 5:
        height, width = width, height
    if 0 < how.max_pixels < height * width:
        told = f"{width} x {height} pixels are more than --max_pixels={how.max_pixels}"
        raise photo_files.UnusablePhoto("too_large", told)
    box = _whole_box(photo, height, width, how.box_rounding)
    factor = _factor(height, width, box, how)
    longest = max(height, width)
    shrunk = factor < 1 and _inside(box, height, width)
    # A box that leaves the photo is cut from the whole: Pillow scales only what is inside.
    reduce_to = int(np.ceil(_REDUCED * factor * longest)) if shrunk else 0
    pixels = height * width
    if header.format == "JPEG":  # others are reduced behind their decoder
        pixels //= photo_files.reduction(longest, reduce_to) ** 2
    if hold:
        hold((_BYTES + _CUT_BYTES * (photo.box is not None)) * pixels + size)
    # It is turned last: that takes no second copy of a large photo, and the blocks of a reduced one
    # begin where its pixels do, not where those of the turned photo would.
    turning = examined.turning(upright=photo.turn)
    image = examined.decode_unturned(max_pixels=how.max_pixels, reduce_to=reduce_to)
    del examined
    before = box[3] - box[1], box[2] - box[0]
    box = _before_turning(box, height, width, turning)
    if turning >= 5:
        height, width = width, height
    sizes = {(-(-height // times), -(-width // times)): times for times in (8, 4, 2, 1)}
    if image.shape[:2] not in sizes:
        raise photo_files.UnusablePhoto("corrupt", "its pixels do not fit the size that it states")
    cut = _cut(image, box, factor, sizes[image.shape[:2]])
    return Prepared(photo_files.turn(cut, turning), before)


def read_photo(
    photo: np.ndarray | Photo | files.Path, how: Preparation = WHOLE, hold: Hold | None = None
) -> np.ndarray:
    """Reads a photo as extraction does; see `read_prepared`.

    Returns:
      uint8 RGB (H, W, 3).
    """
    return read_prepared(photo, how, hold).image


def read_prepared(
    photo: np.ndarray | Photo | files.Path, how: Preparation = WHOLE, hold: Hold | None = None
) -> Prepared:
    """Reads a photo as extraction does.

    Args:
      photo: one of a listing, cropped to its box if it has one; the path of a photo; or uint8 RGB
        (H, W, 3), which is checked.
      how: to turn, to cut and to shrink it.
      hold: is asked before the photo is decoded.

    Raises:
      InputError: when it cannot be read, or is not such an array.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3:
            raise InputError(f"a photo is {photo.dtype} {photo.shape}; give uint8 RGB (H, W, 3)")
        return Prepared(shrink(photo, how.max_side), photo.shape[:2])
    if not isinstance(photo, Photo):
        photo = Photo(pathlib.Path(photo).stem, photo, turn=how.upright)
    found = prepare(photo, how, hold)
    if isinstance(found, str):
        raise InputError(found)
    return found
