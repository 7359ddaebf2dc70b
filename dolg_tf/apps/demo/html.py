"""The demo's own HTML: the photo with its box, the answer, the map."""

import functools
import html
import pathlib
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo import photos as demo_photos
from dolg_tf.apps.demo.search import OWN_SCALES, SHOWN_SIDE, Answer, FoundPhoto, Query
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.rerank.methods import RERANKERS

RERANK_WORDS = {"none": "None", **{name: one.title for name, one in RERANKERS.items()}}


def escape(text: object) -> str:
    """Returns text for HTML, and for Gradio's templates, which look for ${ } and {{ }}."""
    from markupsafe import Markup

    if isinstance(text, Markup):
        return text
    found = html.escape(str(text))
    for mark in "${}`\\":
        found = found.replace(mark, f"&#{ord(mark)};")
    return Markup(found)


@functools.cache
def _macros():
    """Returns the macros of the template; whatever they show goes through `escape`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = demo_photos.data_uri
    return environment.get_template("parts.html.j2").module


def _part(macro: str, *values) -> str:
    return str(getattr(_macros(), macro)(*values))


def _numbers(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:.4g}" for scale in scales)


def scale_choices(own: Sequence[float]) -> list[tuple[str, str]]:
    """Returns (words, value) of the scales that can be chosen, those of the index first."""
    choices = [(f"As the index ({_numbers(own)})", OWN_SCALES)]
    for name, scales in SCALE_SETS.items():
        if _numbers(scales) != _numbers(own):
            choices.append((f"{name.capitalize()} ({_numbers(scales)})", name))
    return choices


def stage(query: Query, picture: bytes) -> str:
    """Returns the visitor's photo, to draw a box on.

    Args:
      query: the photo.
      picture: a JPEG of it.
    """
    return _part("stage", query, picture)


def message(text: str) -> str:
    """Returns an error message."""
    return _part("message", text)


def welcome(index: Index) -> str:
    """Returns what is shown before the first answer."""
    return _part("welcome", len(index))


def answer(found: Answer, index: Index, scales: str, reranking: str) -> str:
    """Returns the found photos, and whether they show the same place."""
    notes = f"{len(found.found)} of {found.searched:,} photos in {found.seconds:.2f} s."
    if reranking != "none":
        notes += f" Ordered by {RERANK_WORDS[reranking]}; a score compares two photos alone."
    if scales != OWN_SCALES:
        told = ", and its threshold measured at these" if index.threshold is not None else ""
        notes += f" The index was described at other scales ({_numbers(index.meta['scales'])})"
        notes += f"{told}: take scores as a rough guide."
    return _part("answer", found.found, *_verdict(found.found, index), notes)


def _verdict(found: Sequence[FoundPhoto], index: Index) -> tuple[str, str, str]:
    """Returns the kind of a verdict, its title and its words."""
    if index.threshold is None:
        text = (
            "A score alone does not say whether two photos show the same place: "
            "`dolg calibrate` finds the threshold for this."
        )
        return "unknown", "No threshold in this index", text
    matching, threshold = sum(photo.matches for photo in found), f"{index.threshold:.3f}"
    share = 100 * index.meta["calibration"].get("precision", 0)
    told = f"Of labelled pairs that reach it, {share:.0f} % show the same place." if share else ""
    if matching:
        photos = "1 photo reaches" if matching == 1 else f"{matching} photos reach"
        return "match", "Match", f"{photos} the threshold of {threshold}. {told}"
    best = max(photo.score for photo in found)
    text = (
        f"None of these photos reaches the threshold of {threshold} for the same place; the best "
        f"scores {best:.3f}."
    )
    return "no-match", "No match", text


def attention(image: np.ndarray | None) -> str:
    """Returns the map of the network over the photo; None: the model has none."""
    if image is None:
        return lines("This model has no attention map.")
    height, width = image.shape[:2]
    drawn = demo_photos.jpeg(image, SHOWN_SIDE)
    return _part("attention", drawn, width, height, demo_photos.RAMP)


def lines(*texts: str) -> str:
    """Returns a paragraph of small print for each text."""
    return _part("lines", texts)


def added(count: int, notes: Sequence[str], most: int) -> str:
    """Returns how many photos a visitor added, and notes about the others."""
    if not count and not notes:
        return ""
    photos = "1 photo of yours is" if count == 1 else f"{count} photos of yours are"
    return lines(f"{photos} searched too; you may add up to {most}.", *notes)
