"""Where else is this place? A folder of photos is searched, without labels and without training.

    dolg search PHOTOS --query=photo.jpg
    dolg search PHOTOS

The first time, all photos are described; from then on only new and changed ones.
"""

import dataclasses
import logging
import pathlib
import threading
from collections.abc import Iterator
from typing import IO

from dolg_tf.apps.demo import serve
from dolg_tf.apps.demo.serve import PageConfig
from dolg_tf.pipelines.own_photos import finding, model, queries
from dolg_tf.pipelines.own_photos.adapt import Searched
from dolg_tf.pipelines.own_photos.collection import OwnPhotos
from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.pipelines.own_photos.finding import File, Found
from dolg_tf.pipelines.own_photos.kept import Kept
from dolg_tf.pipelines.own_photos.learning import learn
from dolg_tf.pipelines.own_photos.learning.labels import find_labels, split
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.pipelines.own_photos.queries import Answer, Query
from dolg_tf.pipelines.own_photos.verification.ordering import VERIFIED
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage import command
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

_SAID = 20  # queries whose answers are printed
_LINES = 10  # photos that are printed for a single query


def search(settings: SearchConfig) -> None:
    """Finds the photos of a place among your own: no labels, no training.

    Photos are described by a ready network, and the search adapts itself to them. With --query, the
    answers are printed and written to a CSV; without, a page opens to search in. The same command
    again describes only what is new or has changed; interrupted, it continues.

    Raises:
      InputError: when there are no photos, the network is missing, or another command is at work on
        the same photos.
    """
    kept = Kept.of(settings)
    if settings.forget:
        told = "deleted" if kept.forget() else "nothing is kept there"
        log.info("%s: %s", kept.path, told)
        return
    model.check(settings.model)
    if settings.learn:
        learn.check(settings.model)
    asked, output = [], pathlib.Path(settings.answers or kept.path / "found.csv")
    if settings.query:
        asked = queries.list_queries(settings.query)
        queries.check_output(output)
    else:
        serve.check(settings.port)
    found = finding.find(kept.roots, kept.path)
    with kept.open() as lock:
        log.info("what is made of your photos is kept in %s", kept.path)
        photos = OwnPhotos(kept, _model(settings, kept, found), found, settings.verify)
        photos.look()
        photos.load()
        if asked:
            answer(photos, asked, settings.k, output, settings.verify)
        else:
            show(settings, photos, lock)


def _model(settings: SearchConfig, kept: Kept, found: Found) -> Model:
    """Returns what describes the photos: the network that was asked for, or what became of it."""
    if settings.learn:
        labels = find_labels(kept.roots, found.photos)
        parts = split(labels)  # says what is lacking, before half a minute's work
    ready = model.open_model(settings.model)

    def describe(one: Model, some: tuple[File, ...]) -> DescriptorSet:
        # What the trained network says of other photos is asked only if it is kept.
        photos = OwnPhotos(
            kept, one, found if one is ready else dataclasses.replace(found, photos=some)
        )
        photos.look()
        photos.load()
        photos.update()
        return descriptors.read(kept.described_by(one.about.model_hash) / "photos")

    if settings.learn:
        learn.learn(kept, settings.model, ready, labels, parts, describe)
    return learn.learnt_model(kept, settings.model) or ready


# --- the page ------------------------------------------------------------------------


def show(settings: SearchConfig, photos: OwnPhotos, lock: IO) -> None:
    """Serves a page that searches the photos, also while they are described, until interrupted.

    Args:
      settings: the port.
      photos: loaded.
      lock: on the kept folder; freed when all photos are described.
    """
    with serve.showing(photos, PageConfig(port=settings.port)) as address:
        log.info("search at %s; stop it with Ctrl-C", address)
        searched = photos.update()
        lock.close()
        log.info("all %d photos can be searched at %s", len(searched.index), address)
        threading.Event().wait()


# --- answers on the terminal ---------------------------------------------------------


def answer(
    photos: OwnPhotos, asked: list[Query], k: int, output: pathlib.Path, verify: bool = False
) -> None:
    """Writes and prints the photos nearest to each query, when all photos are described.

    Args:
      photos: loaded.
      asked: what is searched for.
      k: answers to each, at most.
      output: CSV of the answers.
      verify: whether local features order them, too.
    """
    asked, raw = photos.describe_queries(asked)  # first: none of them may be a photo
    searched = photos.update()
    own = queries.own_rows(asked, searched.index.ids, photos.photos)
    most = max(k, VERIFIED) if verify else k
    found = queries.answers(searched, asked, raw, own, most)
    if verify:
        found = photos.verified(searched, found, k)
    lines = _lines(searched, _said(searched, found, len(asked)), verify)
    write_table(output, next(lines), lines)
    log.info("%s: the answers to %d queries", output, len(asked))


def _lines(searched: Searched, found: Iterator[Answer], verified: bool) -> Iterator[list]:
    """Yields the lines of the CSV."""
    index = searched.index
    calibrated = index.threshold is not None
    yield [*queries.COLUMNS, *["match"] * calibrated, *["inliers"] * verified]
    for one in found:
        for place, (row, score) in enumerate(zip(one.rows, one.scores, strict=True), 1):
            line = [one.query.name, place, index.ids[row], f"{score:.9g}"]
            match = ["match" if index.matches(score) else "no match"] if calibrated else []
            inliers = [_agreeing(one.inliers[place - 1])] if verified else []
            yield line + match + inliers


def _said(searched: Searched, found: Iterator[Answer], count: int) -> Iterator[Answer]:
    """Yields the answers, and prints the first ones on the way."""
    index, matched = searched.index, 0
    for place, one in enumerate(found):
        matches = index.matches(one.scores) if index.threshold is not None else None
        matched += matches is not None and bool(matches.any())
        if place < _SAID:
            shown = _LINES if count == 1 else 1
            command.show("\n".join(_words(searched, one, matches, shown)))
        yield one
    if index.threshold is not None:
        log.info("%d of %d queries have a match; %s", matched, count, threshold_words(searched))


def _words(searched: Searched, one: Answer, matches, shown: int) -> Iterator[str]:
    """Yields what is printed of an answer."""
    yield f"{one.query.name}:" if len(one.rows) else f"{one.query.name}: no other photo to find"
    for place, (row, score) in enumerate(zip(one.rows[:shown], one.scores, strict=False)):
        match = "" if matches is None else "   match" if matches[place] else "no match"
        agree = "" if one.inliers is None else f"{_agreeing(one.inliers[place]):>4} agree  "
        yield f"  {score:6.3f}  {match}  {agree}{command.one_line(searched.index.ids[row])}"


def _agreeing(inliers: int) -> str:
    """Returns how many local features of a photo agree; nothing if it was not verified."""
    return "" if inliers < 0 else str(inliers)


def threshold_words(searched: Searched) -> str:
    """Returns what the threshold of a calibrated index is worth, for people."""
    fitted = searched.index.meta["calibration"]
    low, high = fitted.get("precision_interval", (fitted["precision"],) * 2)
    if not fitted.get("estimated"):
        return f"a score of {fitted['threshold']:.3f} is a match, as `dolg calibrate` measured"
    few = ", which is little" if fitted.get("warning") else ""
    return (
        f"a score of {fitted['threshold']:.3f} is a match: an estimate without labels, from "
        f"{fitted['pairs']['same']} pairs of {fitted['groups']} groups{few}; "
        f"{fitted['precision']:.0%} of them are right ({low:.0%} to {high:.0%}); "
        "`dolg calibrate` measures it with labels"
    )
