"""A page of sections, tables and pictures as one HTML file that needs no network."""

import base64
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence

from dolg_tf.apps.pictures.ranked_list import RankedRow, encoded
from dolg_tf.apps.report import page_images
from dolg_tf.stage import files, installed, progress, workshop
from dolg_tf.stage.config import InputError

PAGE = "report.html"
_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Picture:
    """A matplotlib Figure of a page.

    Attributes:
      name: of the PNG, without suffix; a second one of this name gets a number.
      figure: see `dolg_tf.apps.pictures.ranked_list`,
        `dolg_tf.apps.report.figures.precision_recall` and their like.
      alt: what it shows, with its main numbers, for readers who cannot see it.
      caption: a sentence under it.
      wide: whether it takes the whole width.
      photographs: whether it consists of photos; the page then holds JPEGs, which are smaller, one
        for the light and one for the dark.
      rows: of a ranked list; the page then shows each photo by itself, and the figure is a file
        beside it.
    """

    kind = "picture"
    name: str
    figure: object
    alt: str
    caption: str = ""
    wide: bool = False
    photographs: bool = False
    rows: Sequence[RankedRow] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; numbers are aligned right, except in the first column."""

    kind = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind = "heading"
    text: str


@dataclasses.dataclass(frozen=True)
class Note:
    """Why something is not shown, and what would show it.

    Attributes:
      text: the reason.
      title: before it, such as the sections that are not shown.
    """

    kind = "note"
    text: str
    title: str = "Not shown"

    @property
    def parts(self) -> list[str]:
        """Text and flags in turn, so that no line breaks inside a flag."""
        return re.split(r"(?<!\S)(--\w+)", self.text)


Block = str | Picture | Table | Heading | Note
"""A part of a section; a `str` is a paragraph."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, listed in its contents."""

    title: str
    blocks: Sequence[Block]

    @property
    def notes(self) -> list[str]:
        return [block.text for block in self.blocks if isinstance(block, Note)]

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but notes and headings."""
        return all(isinstance(block, Note | Heading) for block in self.blocks)


# --- the folder ----------------------------------------------------------------------


def check_folder(output: files.Path) -> None:
    """Makes sure that a page may replace a folder.

    Raises:
      InputError: when it holds something else.
    """
    output = pathlib.Path(output)
    if workshop.recover(output) and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    own = (output / PAGE).is_file()
    others = [p.name for p in output.iterdir() if p.name != PAGE and p.suffix != ".png"]
    if not own or others:
        what = f"holds {min(others)}" if others else f"has no {PAGE}"
        raise InputError(
            f"--output={output} {what}, so it is not a report to replace; choose another folder"
        )


def write_page(
    output: files.Path, title: str, sections: Sequence[Section], lead: str = ""
) -> pathlib.Path:
    """Writes a folder with the page and its pictures as PNG, completely or not at all.

    Args:
      output: the folder; a report in it is replaced.
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
        files.lock(workshop.hidden(output, "lock"), taken),
        files.atomic_path(output) as temporary,
    ):
        temporary.mkdir()
        images = {}
        for picture in progress.track(pictures, len(pictures), "draw", "pictures"):
            png = encoded(picture.figure)
            _unused(temporary, picture.name).write_bytes(png)
            shown = page_images.of_rankings(picture.rows) or page_images.of_figure(picture, png)
            images[id(picture)] = shown
        page = _html(title, sections, images, lead)
        # Names may be of bytes that are no text.
        (temporary / PAGE).write_text(page, encoding="utf-8", errors="replace")
        check_folder(output)  # it may have been filled meanwhile
    return output / PAGE


def _unused(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns a path for a picture: names of data that differ may have one slug."""
    path, number = files.inside(folder, f"{name}.png"), 1
    while path.exists():
        number += 1
        path = files.inside(folder, f"{name}_{number}.png")
    return path


# --- the page ------------------------------------------------------------------------


def template():
    """Returns the template of the page.

    Raises:
      InputError: when Jinja2 is not installed.
    """
    installed.need("report", "the page", "jinja2")
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")


def _html(title: str, sections: Sequence[Section], images: dict[int, dict], lead: str) -> str:
    """Returns the HTML of a page; small blocks that follow one another stand side by side."""
    anchor = _Anchors().new
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    return template().render(
        title=title,
        lead=lead,
        contents=[
            (section, anchor(section.title), itertools.groupby(section.blocks, _is_small))
            for section in sections
        ],
        image_of=lambda picture: images[id(picture)],
        anchor=anchor,
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


class _Anchors:
    """Anchors of the page, each unique."""

    def __init__(self):
        self._given = {}

    def new(self, text: str) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        count = self._given[name] = self._given.get(name, 0) + 1
        return name if count == 1 else f"{name}--{count}"


def _is_small(block: Block) -> bool:
    """Returns whether a block may stand beside another."""
    return (isinstance(block, Picture) and not block.wide) or (
        isinstance(block, Table) and not block.numbers
    )
