"""The parts of the demo's page that are its own: the photo with its box, the answer, the map."""

import html
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo import photos as demo_photos
from dolg_tf.apps.demo.search import OWN_SCALES, SCALES, Answer, FoundPhoto, Query
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.rerank.methods import RERANKERS

SCALE_WORDS = {"one": "One", "three": "Three", "five": "Five"}
RERANK_WORDS = {"none": "None", **{name: one.title for name, one in RERANKERS.items()}}
_SHOWN_SIDE = 1024  # longest side of photos on the page, in pixels


def escape(text: str) -> str:
    """Returns text for HTML, and for Gradio's templates, which look for ${ } and {{ }}."""
    found = html.escape(text)
    for mark in "${}`\\":
        found = found.replace(mark, f"&#{ord(mark)};")
    return found


def _image(encoded: bytes, alt: str) -> str:
    return f'<img src="{demo_photos.data_uri(encoded)}" alt="{escape(alt)}" draggable="false">'


def _numbers(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:.4g}" for scale in scales)


def scale_choices(own: Sequence[float]) -> list[tuple[str, str]]:
    """Returns (words, value) of the scales that can be chosen, those of the index first."""
    choices = [(f"As the index ({_numbers(own)})", OWN_SCALES)]
    for name, scales in SCALES.items():
        if _numbers(scales) != _numbers(own):
            choices.append((f"{SCALE_WORDS[name]} ({_numbers(scales)})", name))
    return choices


def stage(query: Query | None) -> str:
    """Returns the visitor's photo, to draw a box on; without a photo, nothing."""
    if query is None:
        return ""
    photo = _image(demo_photos.jpeg(query.image, _SHOWN_SIDE), "your photo")
    size = f'data-width="{query.width}" data-height="{query.height}"'
    size += f' style="--aspect: {query.width / query.height:.5f}"'
    hint = f"{query.width} x {query.height} pixels. Draw a box around what you search for."
    return (
        f'<figure class="stage"><div class="frame" {size}>{photo}<div class="box" hidden></div>'
        f"</div><figcaption>{hint}</figcaption></figure>"
    )


def message(text: str) -> str:
    """Returns what went wrong."""
    return f'<div class="verdict wrong" role="alert">{escape(text)}</div>'


def welcome(index: Index) -> str:
    """Returns what stands where the answer will be."""
    return (
        f'<div class="empty">The nearest of {len(index):,} photos will be shown here, with their '
        "scores.</div>"
    )


def answer(found: Answer, index: Index, scales: str, reranking: str) -> str:
    """Returns the photos that were found, and whether they show the same place."""
    photos = "".join(_photo(rank, photo) for rank, photo in enumerate(found.found, 1))
    notes = [f"{len(found.found)} of {found.searched:,} photos in {found.seconds:.2f} s."]
    if reranking != "none":
        notes.append(
            f"Order by {RERANK_WORDS[reranking]}; scores are those of the two photos alone."
        )
    if scales != OWN_SCALES:
        told = "; its threshold was measured so" if index.threshold is not None else ""
        notes.append(f"The index was described at other scales ({_numbers(index.meta['scales'])})")
        notes[-1] += f"{told}, so take scores for a rough guide."
    return (
        f'{_verdict(found.found, index)}<ol class="found">{photos}</ol>'
        f'<p class="notes">{escape(" ".join(notes))}</p>'
    )


def _verdict(found: Sequence[FoundPhoto], index: Index) -> str:
    if index.threshold is None:
        text = (
            "A score alone does not say whether two photos show the same place: "
            "`dolg calibrate` finds the threshold for this."
        )
        return _banner("unknown", "No threshold in this index", text)
    matching, threshold = sum(photo.matches for photo in found), f"{index.threshold:.3f}"
    share = 100 * index.meta["calibration"].get("precision", 0)
    told = f"Of labelled pairs that reach it, {share:.0f} % show the same place." if share else ""
    if matching:
        photos = "1 photo reaches" if matching == 1 else f"{matching} photos reach"
        text = f"{photos} the threshold of {threshold}. {told}"
        return _banner("match", "Match", text)
    best = max(photo.score for photo in found)
    text = (
        f"None of these photos reaches the threshold of {threshold} for the same place; the best "
        f"has {best:.3f}."
    )
    return _banner("no-match", "No match", text)


def _banner(kind: str, title: str, text: str) -> str:
    return (
        f'<div class="verdict {kind}" role="status"><strong>{escape(title)}</strong> '
        f"{escape(text)}</div>"
    )


def _photo(rank: int, photo: FoundPhoto) -> str:
    told = {True: "match", False: "below", None: ""}[photo.matches]
    badge = f'<span class="badge {told}">{told}</span>' if told else ""
    added = '<span class="badge added">added by you</span>' if photo.added else ""
    if photo.thumbnail is None:
        picture = '<div class="gone">photo not on disk</div>'
    else:
        picture = _image(photo.thumbnail, f"rank {rank}")
    name = escape(photo.id)
    return (
        f'<li class="photo {told}"><div class="thumb">{picture}</div>'
        f'<div class="line"><span class="rank">{rank}</span>'
        f'<span class="score">{photo.score:.3f}</span>{badge}{added}</div>'
        f'<div class="id" title="{name}">{name}</div></li>'
    )


def attention(image: np.ndarray | None) -> str:
    """Returns the map of the network over the photo; None: the model has none."""
    if image is None:
        return '<p class="notes">This model has no attention map.</p>'
    ramp, aspect = ", ".join(demo_photos.RAMP), image.shape[1] / image.shape[0]
    drawn = _image(demo_photos.jpeg(image, _SHOWN_SIDE), "attention map")
    return (
        f'<figure class="map" style="--aspect: {aspect:.5f}">{drawn}'
        '<figcaption>Attention <span>low</span><span class="ramp" style="background: '
        f'linear-gradient(to right, {ramp})"></span><span>high</span></figcaption></figure>'
    )


def working(text: str) -> str:
    """Returns how far something is."""
    return f'<p class="notes">{escape(text)}</p>'


def added(count: int, notes: Sequence[str], most: int) -> str:
    """Returns which photos a visitor added, and what was left out."""
    if not count and not notes:
        return ""
    photos = "1 photo" if count == 1 else f"{count} photos"
    verb = "is" if count == 1 else "are"
    lines = [f"{photos} of yours {verb} searched too; {most} may be."]
    return "".join(f'<p class="notes">{escape(line)}</p>' for line in (*lines, *notes))
