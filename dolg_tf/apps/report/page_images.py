"""Pictures as a page holds them: inside the HTML, in the light and in the dark."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.pictures.ranked_list import BOX_COLOUR, KINDS, RankedRow, encoded
from dolg_tf.data import photo_files

_JPEG_QUALITY = 88
_SIDE = 320  # longest side of a photo of a ranked list, in pixels
_DARK_PAPER, _DARK_INK = "#141416", "#d4d4d8"  # of the page's style in the dark
_DARK_TEXT = 0.5  # luminance of text that would be lost in the dark


def of_figure(picture, png: bytes) -> dict:
    """Returns what an `<img>` takes.

    Args:
      picture: a `dolg_tf.apps.report.page.Picture`; its figure may be redrawn in other colours.
      png: the figure as a file.

    Returns:
      {"source", "width", "height", "dark"}: `dark` is the source of a version for the dark, "" for
      a diagram, whose lightness the page's style turns around; photos keep theirs.
    """
    examined = photo_files.examine(png)
    found = {"width": examined.header.width, "height": examined.header.height, "dark": ""}
    if not picture.photographs:
        return found | {"source": _source(png, "png")}
    dark = photo_files.examine(_drawn_dark(picture.figure))
    sources = [_jpeg(one.decode(upright=False)) for one in (examined, dark)]
    return found | {"source": sources[0], "dark": sources[1]}


def of_rankings(rows: Sequence[RankedRow]) -> list[dict]:
    """Returns what the page shows of ranked lists, photo by photo.

    Returns:
      {"label", "photos"} of each query: of the query, then of the photos found, best first,
      {"source", "width", "height", "kind", "mark", "alt", "text"}.
    """
    found = []
    for row in rows:
        photos = [_photo(_boxed(row), "query", "", row.label, row.label)]
        for rank, photo in enumerate(row.found, 1):
            _, mark, _, meaning = KINDS[photo.kind]
            score = "" if photo.score is None else f"{photo.score:.3f}"
            alt = f"rank {rank}, {meaning}" + (f", similarity {score}" if score else "")
            photos.append(_photo(photo.image, photo.kind, mark, alt, f"{rank} {score}".strip()))
        found.append({"label": row.label, "photos": photos})
    return found


def _photo(image: np.ndarray, kind: str, mark: str, alt: str, text: str) -> dict:
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    words = {"kind": kind, "mark": mark, "alt": alt, "text": text}
    return words | {
        "source": _jpeg(np.asarray(small)),
        "width": small.width,
        "height": small.height,
    }


def _boxed(row: RankedRow) -> np.ndarray:
    """Returns a query photo with the part that was searched for drawn in."""
    if row.box is None:
        return row.image
    from PIL import Image, ImageDraw

    photo = Image.fromarray(row.image)
    pixel = max(1, round(max(photo.size) / _SIDE))  # of the photo as it is shown
    pen = ImageDraw.Draw(photo)
    for colour, width in (("black", 5 * pixel), (BOX_COLOUR, 3 * pixel)):
        pen.rectangle(row.box, outline=colour, width=width)
    return np.asarray(photo)


def _drawn_dark(figure) -> bytes:
    """Returns a figure of photos as a PNG whose paper is dark; the figure stays dark."""
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    figure.set_facecolor(_DARK_PAPER)
    for axes in figure.axes:
        axes.tick_params(colors=_DARK_INK)
        axes.spines[:].set_edgecolor(_DARK_INK)
    for text in figure.findobj(Text):
        on_plate = text.get_bbox_patch() is not None
        if not on_plate and np.mean(to_rgb(text.get_color())) < _DARK_TEXT:
            text.set_color(_DARK_INK)
    return encoded(figure)


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    found = io.BytesIO()
    Image.fromarray(image).save(found, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return _source(found.getvalue(), "jpeg")


def _source(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
