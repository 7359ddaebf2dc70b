"""A page of sections, tables and pictures as one HTML file that needs no network."""

import base64
import dataclasses
import hashlib
import html
import io
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence

from dolg_tf.apps.report.page_style import STYLE
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

PAGE = "report.html"
_JPEG_QUALITY = 88
_BROAD = 1.9  # times as wide as high: on a phone it is scrolled further


@dataclasses.dataclass(frozen=True)
class Picture:
    """A matplotlib Figure that goes into a page.

    Attributes:
      name: of the PNG, without suffix; no other picture of the page has it.
      figure: see `dolg_tf.apps.pictures.ranked_list`,
        `dolg_tf.apps.report.figures.precision_recall` and their like.
      alt: what it shows, with its main numbers, for who cannot see it.
      caption: a sentence under it.
      wide: whether it needs the whole width, and is scrolled sideways on a phone.
      photographs: whether it is made of photos: then the page holds a JPEG of it, which is smaller.
    """

    name: str
    figure: object
    alt: str
    caption: str = ""
    wide: bool = False
    photographs: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; numbers are aligned right, but for the first column."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Note:
    """Why something is not shown, and what would show it."""

    text: str


Block = str | Picture | Table | Heading | Note
"""A part of a section; a `str` is a paragraph."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a place in its contents."""

    title: str
    blocks: Sequence[Block]

    @property
    def notes(self) -> list[str]:
        return [block.text for block in self.blocks if isinstance(block, Note)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing but notes is there."""
        return all(isinstance(block, Note | Heading) for block in self.blocks)


# --- the folder ----------------------------------------------------------------------


def check_folder(output: files.Path) -> None:
    """Makes sure that a page may take the place of a folder.

    Raises:
      InputError: when something else is there.
    """
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    own = (output / PAGE).is_file()
    others = [p.name for p in output.iterdir() if p.name != PAGE and p.suffix != ".png"]
    if not own or others:
        what = f"holds {min(others)}" if others else f"has no {PAGE}"
        raise InputError(
            f"--output={output} {what}, it is no report that may be replaced; give another folder"
        )


def write_page(
    output: files.Path, title: str, sections: Sequence[Section], lead: str = ""
) -> pathlib.Path:
    """Writes a folder of the page and its pictures as PNG, whole or not at all.

    Args:
      output: the folder; a report that stands there is replaced.
      title: of the page.
      sections: in their order.
      lead: a paragraph under the title.

    Returns:
      The path of the page.

    Raises:
      InputError: when something else is in the folder, or another process is writing it.
    """
    output = pathlib.Path(output).resolve()
    check_folder(output)
    pictures = [b for section in sections for b in section.blocks if isinstance(b, Picture)]
    taken = f"{output}: another process is writing this report; wait for it"
    with (
        files.lock(output.parent / f".{output.name}.lock", taken),
        files.atomic_path(output) as temporary,
    ):
        temporary.mkdir()
        images = {}
        for picture in progress.track(pictures, len(pictures), "draw", "pictures"):
            path = files.inside(temporary, f"{picture.name}.png")
            if path.exists():
                raise ValueError(f"two pictures are named {picture.name!r}")
            picture.figure.savefig(path)
            images[picture.name] = _image(path, picture)
        (temporary / PAGE).write_text(page(title, sections, images, lead), encoding="utf-8")
        check_folder(output)  # it may have been filled meanwhile
    return output / PAGE


def _image(path: pathlib.Path, picture: Picture) -> str:
    """Returns the `<img>` of a picture, with everything in it."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        kind, data = "png", path.read_bytes()
        if picture.photographs:
            jpeg = io.BytesIO()
            image.convert("RGB").save(jpeg, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            kind, data = "jpeg", jpeg.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    kind = ' class="broad"' if width > _BROAD * height else ""
    alt = _escape(picture.alt)
    return f'<img{kind} src="{source}" alt="{alt}" width="{width}" height="{height}">'


# --- the page ------------------------------------------------------------------------


def _escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def page(title: str, sections: Sequence[Section], images: dict[str, str], lead: str = "") -> str:
    """Returns the HTML of a page.

    Args:
      title, sections, lead: see `write_page`.
      images: the `<img>` of each picture, by its name.
    """
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    # Nothing is fetched, run or sent, whatever a file of the run holds.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; base-uri 'none'; "
        "form-action 'none'"
    )
    anchors = _Anchors()
    contents, parts = [], []
    for section in sections:
        anchor = anchors.new(section.title)
        contents.append(f'<li><a href="#{anchor}">{_escape(section.title)}</a></li>')
        body = "\n".join(_blocks(section.blocks, images, anchors))
        heading = _heading(2, section.title, anchor)
        parts.append(f'<section aria-labelledby="{anchor}">\n{heading}\n{body}\n</section>')
    lead = f'<p class="lead">{_escape(lead)}</p>' if lead else ""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{_escape(title)}</h1>{lead}</header>",
        f'<nav aria-label="Contents"><ul>{"".join(contents)}</ul></nav>',
        "<main>",
        *parts,
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


class _Anchors:
    """Names of places in the page, each given once."""

    def __init__(self):
        self._given = {}

    def new(self, text: str) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        count = self._given[name] = self._given.get(name, 0) + 1
        return name if count == 1 else f"{name}--{count}"


def _heading(level: int, text: str, anchor: str) -> str:
    text = _escape(text)
    return f'<h{level} id="{anchor}"><a href="#{anchor}">{text}</a></h{level}>'


def _blocks(blocks: Sequence[Block], images: dict[str, str], anchors: _Anchors) -> Iterator[str]:
    """Yields the HTML of blocks; small ones that follow one another stand side by side."""
    row = []
    for block in [*blocks, None]:
        if _is_small(block):
            row.append(_table(block) if isinstance(block, Table) else _picture(block, images))
            continue
        if row:
            yield f'<div class="row">{"".join(row)}</div>'
            row = []
        if isinstance(block, Picture):
            yield _picture(block, images)
        elif isinstance(block, Table):
            yield _table(block)
        elif isinstance(block, Heading):
            yield _heading(3, block.text, anchors.new(block.text))
        elif isinstance(block, Note):
            # A flag is not broken at its dashes.
            text = re.sub(r"(?<!\S)(--\w+)", r"<code>\1</code>", _escape(block.text))
            yield f'<p class="note"><strong>Not shown:</strong> {text}</p>'
        elif block is not None:
            yield f"<p>{_escape(block)}</p>"


def _is_small(block: Block | None) -> bool:
    """Returns whether it may stand beside another."""
    return (isinstance(block, Picture) and not block.wide) or (
        isinstance(block, Table) and not block.numbers
    )


def _scroller(inside: str, label: str) -> str:
    """Returns what is scrolled sideways where it is too wide, by keys too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def _picture(picture: Picture, images: dict[str, str]) -> str:
    image = images[picture.name]
    caption = f"<figcaption>{_escape(picture.caption)}</figcaption>" if picture.caption else ""
    if not picture.wide:
        return f"<figure>{image}{caption}</figure>"
    return f'<figure class="wide">{_scroller(image, "picture, wide")}{caption}</figure>'


def _table(table: Table) -> str:
    header = "".join(f'<th scope="col">{_escape(cell)}</th>' for cell in table.header)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td>{_escape(cell)}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{_escape(first)}</th>{cells}</tr>')
    caption = f"<caption>{_escape(table.caption)}</caption>" if table.caption else ""
    kind = ' class="numbers"' if table.numbers else ""
    inside = f"<thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return _scroller(f"<table{kind}>{caption}{inside}</table>", "table")
