"""The page's HTML: the whole of it, and the fragments that it asks for later."""

import functools
import pathlib
import urllib.parse
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo import photos as page_photos
from dolg_tf.apps.demo.answers.drawing import drawings
from dolg_tf.apps.demo.answers.ranking import FoundPhoto
from dolg_tf.apps.demo.answers.second_look import Why
from dolg_tf.apps.demo.collection import Progress, Threshold
from dolg_tf.apps.demo.search import LARGE_SIDE, OWN_SCALES, Answer, Engine, Query
from dolg_tf.apps.pictures import verified
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.rerank.methods import RERANKERS
from dolg_tf.stage.progress import format_seconds

RERANK_WORDS = {"none": "None", **{name: one.title for name, one in RERANKERS.items()}}
FIRST_PLACES = 48  # more come at a time
_UNREAD = 20  # photos that could not be read, listed on the page


@functools.cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quoted": lambda text: urllib.parse.quote(text, safe=""),
        "name": lambda id_: pathlib.PurePath(id_).name,
        "many": many,
    }
    return environment


def _part(macro: str, *values) -> str:
    made = getattr(_template().get_template("parts.html.j2").module, macro)(*values)
    return _text(str(made).strip())


def _text(made: str) -> str:
    """Returns what can be sent: the name of a file may hold bytes that are no text."""
    return made.encode(errors="replace").decode()


def many(count: int, one: str, several: str = "") -> str:
    """Returns "1 photo" or "1,200 photos"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _numbers(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:.4g}" for scale in scales)


def scale_choices(own: Sequence[float]) -> list[tuple[str, str]]:
    """Returns (words, value) of the scales that can be chosen, those of the photos first."""
    choices = [(f"As your photos ({_numbers(own)})", OWN_SCALES)]
    for name, scales in SCALE_SETS.items():
        if _numbers(scales) != _numbers(own):
            choices.append((f"{name.capitalize()} ({_numbers(scales)})", name))
    return choices


# --- the page -----------------------------------------------------------------------------


def page(engine: Engine) -> str:
    """Returns the whole page, with the first places."""
    now, progress = engine.now(), engine.collection.progress()
    template = _template().get_template("page.html.j2")
    made = template.render(
        title=engine.collection.title,
        total=max(progress.total, len(now.photos.ids)),
        version=now.version,
        status=status(progress),
        places=places(engine, FIRST_PLACES),
        scales=scale_choices(engine.collection.scales),
        rerankings=[(RERANK_WORDS[name], name) for name in engine.rerankings],
        has_maps=engine.collection.has_maps,
        max_bytes=engine.max_bytes,
    )
    return _text(made)


def status(progress: Progress) -> str:
    """Returns how far the describing is; empty when all is done and could be read."""
    left = ""
    if progress.rate > 0 and progress.total > progress.done:
        left = format_seconds((progress.total - progress.done) / progress.rate)
    return _part("status", progress, left, progress.unread[:_UNREAD])


def places(engine: Engine, most: int) -> str:
    """Returns the places that the photos show, largest first."""
    now = engine.now().photos
    shown = [(now.ids[place[0]], len(place)) for place in now.places[:most]]
    working = bool(engine.collection.progress().doing)
    return _part("places", shown, len(now.places), most, now.note, working)


def place(engine: Engine, id_: str, most: int) -> str:
    """Returns all photos of the place that a photo shows."""
    at = engine.now()
    found = at.place(id_)
    rows = at.rows.get(id_, []) if found is None else found
    shown = [FoundPhoto(at.photos.ids[row], 0.0, None) for row in np.atleast_1d(rows)[:most]]
    return _part("place", _located(engine, shown), len(np.atleast_1d(rows)))


def stage(query: Query, picture: bytes) -> str:
    """Returns the photo that is searched for, to draw a box on.

    Args:
      query: the photo.
      picture: a JPEG of it.
    """
    return _part("stage", query, page_photos.data_uri(picture))


def wrong(text: str) -> str:
    """Returns an error message."""
    return _part("wrong", text)


def attention(image: np.ndarray | None) -> str:
    """Returns the map of the network over the photo; None: the model has none."""
    if image is None:
        return _part("note", "This model cannot show where it looked.")
    height, width = image.shape[:2]
    return _part(
        "attention", page_photos.data_uri(page_photos.jpeg(image, LARGE_SIDE)), width, height
    )


def why(found: Why) -> str:
    """Returns both photos, and what they agree on."""
    return _part("why", found.id, drawings(found), verified.caption(found.pair))


# --- the answer ---------------------------------------------------------------------------


def answer(found: Answer, engine: Engine, scales: str, reranking: str) -> str:
    """Returns the found photos, and whether they show the same place."""
    notes = f"{many(found.searched, 'photo')} searched in {found.seconds:.2f} s."
    if reranking != "none":
        notes += f" Ordered by {RERANK_WORDS[reranking]}; a score compares two photos alone."
    elif found.now.expansion is not None:
        notes += " Ordered with the help of the nearest ones; a score compares two photos alone."
    if scales != OWN_SCALES:
        told = ", and the threshold belongs to these" if found.now.threshold is not None else ""
        notes += f" The photos were described at other sizes ({_numbers(engine.collection.scales)})"
        notes += f"{told}: take scores as a rough guide."
    kind, title, text, warning = _verdict(found.found, found.now.threshold)
    place, size = _place_of(found, engine)
    tiles = _located(engine, found.found)
    why_ = engine.collection.has_local
    return _part("answer", tiles, kind, title, text, warning, notes, place, size, why_)


def _place_of(found: Answer, engine: Engine) -> tuple[str, int]:
    """Returns a photo of the place that was found, and its number of photos; "": of none."""
    first = found.found[0] if found.found else None
    if first is None or not (first.matches or first.same):
        return "", 0
    members = engine.now().place(first.id)
    return ("", 0) if members is None else (first.id, len(members))


def _located(engine: Engine, found: Sequence[FoundPhoto]) -> list[tuple]:
    """Returns (photo, path or None, the same of those alike) of photos."""

    def path(photo: FoundPhoto) -> str | None:
        file = engine.file(photo.id)
        return None if file is None else str(file.absolute())

    return [
        (photo, path(photo), [(other, path(other)) for other in photo.alike]) for photo in found
    ]


def _verdict(found: Sequence[FoundPhoto], threshold: Threshold | None) -> tuple[str, str, str, str]:
    """Returns the kind of a verdict, its title, its words and a warning."""
    if threshold is None:
        text = (
            "Nothing has measured yet from which score on two photos show the same place, so look "
            "for yourself."
        )
        return "unknown", "The most similar photos", text, ""
    if any(photo.matches is None for photo in found):
        text = (
            f"Whether two photos show the same place was measured with {threshold.inliers} places "
            "or more that agree; they are counted where photos are ordered by "
            f"{RERANK_WORDS['geometric']}."
        )
        return "unknown", "The most similar photos", text, ""
    others = [photo for tile in found for photo in (tile, *tile.alike) if not photo.same]
    matching = sum(photo.matches for photo in others)
    told = _worth(threshold)
    among = "This very photo is among those that are searched. "
    told = f"{among * any(tile.same for tile in found)}{told}"
    probably = "probably " if threshold.estimated else ""
    if matching:
        other = "other " if told.startswith(among) else ""
        shows = "shows" if matching == 1 else "show"
        title = f"{many(matching, f'{other}photo')} {probably}{shows} the same place"
        return "match", title, told, threshold.warning
    text = told
    if others:
        best = max(photo.score for photo in others)
        text = f"The most similar photo scores {best:.3f}. {told}"
    title = f"{probably}no photo of the same place".capitalize()
    return "no-match", title, text, threshold.warning


def _worth(threshold: Threshold) -> str:
    """Returns what a threshold is worth."""
    share = ""
    if threshold.precision:
        share = f"{100 * threshold.precision:.0f}\N{NO-BREAK SPACE}%"
        if threshold.low is not None and threshold.high is not None:
            low, high = 100 * threshold.low, 100 * threshold.high
            share += f" ({low:.0f} to {high:.0f}\N{NO-BREAK SPACE}%)" * (high - low >= 1)
    number = f"{threshold.score:.3f}"
    agree = f" and {threshold.inliers} places that agree" if threshold.inliers else ""
    if not threshold.estimated:
        if share:
            return f"Of labelled pairs with {number}{agree} or more, {share} show the same place."
        return f"The threshold is {number}{agree}."
    told = f"The threshold of {number} is an estimate from your photos, without labels"
    if threshold.pairs and not threshold.warning:  # which says it
        told += f", which rests on {many(threshold.pairs, 'pair')}"
    return f"{told}; of pairs that reach it, about {share} are right." if share else f"{told}."
