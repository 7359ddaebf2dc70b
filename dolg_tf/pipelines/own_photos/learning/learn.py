"""Labels train the network that describes your photos, and are asked whether that helped.

Some landmarks are kept out of the training, and of all landmarks some photos ask for the others.
The trained network is kept if it finds no fewer of either kind: training on some landmarks may
well make a network worse at all others.
"""

import hashlib
import logging
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from dolg_tf.evaluation.metrics import revisited_average_precision
from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.pipelines.own_photos.kept import Kept
from dolg_tf.pipelines.own_photos.learning import recipe
from dolg_tf.pipelines.own_photos.learning.labels import Labels, Parts
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.extract.model import open_describer
from dolg_tf.retrieval.whitening import choose
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving import ready
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_FOLDER, _BEGUN = "learnt", "learning"
_RESULT, _PLAN = "result.json", "plan.json"
KINDS = {"trained": "landmarks that were trained on", "left_out": "landmarks that were kept out"}

Describe = Callable[[Model, tuple[File, ...]], DescriptorSet]
"""Describes photos by a model; returns at least their raw descriptors, by id."""


def check(model: str) -> None:
    """Makes sure that a model can be trained.

    Raises:
      InputError: when it is not one that the recipe is for.
    """
    if model not in ready.PACKAGED:
        known = " or ".join(ready.PACKAGED)
        raise InputError(f"--learn trains {known}, not --model={model}; leave --model out")


def learnt_model(kept: Kept, model: str) -> Model | None:
    """Returns the trained network of a kept folder; None: there is none, or it was not better.

    Args:
      kept: the folder.
      model: what it would stand in for.

    Raises:
      InputError: when it is damaged.
    """
    folder = kept.path / _FOLDER
    if not (folder / _RESULT).is_file():
        return None
    try:
        result = files.read_json(folder / _RESULT, FORMAT_VERSION)
        if not result["kept"] or result["model"] != model:
            return None
        path = folder / "model"
        return Model(path, ready.SIDE, open_describer(path, ()))
    except (InputError, KeyError) as error:
        raise InputError(
            f"{folder}: damaged ({error}); delete it, and train again with --learn"
        ) from error


def learn(
    kept: Kept, model: str, before: Model, labels: Labels, parts: Parts, describe: Describe
) -> None:
    """Trains on labels and measures; the trained network is kept if it is no worse.

    What was learned from the same labels before stays; an interrupted training continues. Until it
    is done, what was learned from other labels stays.

    Args:
      kept: the folder of all that a search keeps.
      model: the ready network that is trained, by its name.
      before: that network.
      labels, parts: the photos, and what they serve for.
      describe: by either network.
    """
    folder, begun = kept.path / _FOLDER, kept.path / _BEGUN
    plan = {"format_version": FORMAT_VERSION, "model": model, "labels": _digest(labels)}
    stored = _stored(folder / _RESULT)
    if any(stored.get(key) != plan[key] for key in plan):
        if _stored(begun / _PLAN) != plan:
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir(parents=True)
            files.write_json(begun / _PLAN, plan)
        if not (begun / _RESULT).is_file():
            result = _trained(kept, model, before, labels, parts, describe)
            files.write_json(begun / _RESULT, plan | result)
        if not (folder.is_dir() and workshop.exchange(begun, folder)):
            shutil.rmtree(folder, ignore_errors=True)
            begun.rename(folder)
        shutil.rmtree(begun, ignore_errors=True)
    for line in table(files.read_json(folder / _RESULT, FORMAT_VERSION)):
        log.info("%s", line)


def _trained(
    kept: Kept, model: str, before: Model, labels: Labels, parts: Parts, describe: Describe
) -> dict:
    """Trains and measures; returns the result, and leaves the network there if it is no worse."""
    log.info("%s", words_of(labels, parts))
    chosen = [(labels.photos[row], labels.landmarks[row]) for row in parts.train]
    path = recipe.train(kept.path / _BEGUN, chosen, model)
    after = Model(path, ready.SIDE, open_describer(path, ()))
    used = tuple(labels.photos[row] for row in sorted([*parts.index, *parts.asked]))
    scores = {
        name: measure(labels, parts, describe(one, used))
        for name, one in (("before", before), ("after", after))
    }
    better = all(scores["after"][kind] >= scores["before"][kind] for kind in KINDS)
    if not better:
        shutil.rmtree(kept.described_by(after.about.model_hash), ignore_errors=True)
        shutil.rmtree(path)
    return {**scores, "asked": len(parts.asked), "kept": better}


def _stored(path: pathlib.Path) -> dict:
    return files.read_json(path) if workshop.recover(path) else {}


def _digest(labels: Labels) -> str:
    """Returns a hash of photos and landmarks: of names, sizes and times, not of all bytes."""
    digest = hashlib.sha256(recipe.RECIPE.encode())
    for photo, landmark in zip(labels.photos, labels.landmarks, strict=True):
        digest.update(f"{photo.id}\0{photo.size}\0{photo.modified}\0{landmark}\n".encode())
    return digest.hexdigest()


# --- measuring -----------------------------------------------------------------------


def measure(labels: Labels, parts: Parts, described: DescriptorSet) -> dict[str, float]:
    """Returns the mAP of photos that ask for the others of their landmarks, by kind of landmark.

    The search is adapted as that of any photos, without those that ask. A photo that could not be
    described neither asks nor is searched.

    Args:
      labels, parts: the photos, and what they serve for.
      described: their raw descriptors.

    Raises:
      InputError: when none that asks has another photo of its landmark to find.
    """
    row_of = {id_: row for row, id_ in enumerate(described.ids)}
    row = np.array([row_of.get(photo.id, -1) for photo in labels.photos])
    _, landmarks = np.unique(labels.landmarks, return_inverse=True)
    index, asked = (some[row[some] >= 0] for some in (parts.index, parts.asked))
    rows, queries = (np.asarray(described.descriptors[row[some]]) for some in (index, asked))
    adapted = choose.adapt(rows)
    if adapted.grouping.passes:
        whitening = Whitening(adapted.mean, adapted.projection, sha256="")
        rows, queries = (whitening.apply(some).astype(np.float32) for some in (rows, queries))
    found = {kind: [] for kind in KINDS}
    for place, one in enumerate(asked):
        ranks = search(rows, queries[place : place + 1], len(rows)).rows[0]
        hits = np.flatnonzero(landmarks[index[ranks]] == landmarks[one])
        if len(hits):
            kind = "left_out" if parts.left_out[one] else "trained"
            found[kind].append(revisited_average_precision(hits))
    for kind, words in KINDS.items():
        if not found[kind]:
            raise InputError(f"no photo of {words} can be read and has another one to find")
    return {kind: float(np.mean(values)) for kind, values in found.items()}


# --- in words ------------------------------------------------------------------------


def words_of(labels: Labels, parts: Parts) -> str:
    """Returns what is trained on, for people."""
    trained, left_out = parts.landmarks
    text = (
        f"labels from {labels.source}: training on {len(parts.train)} photos of {trained} "
        f"landmarks; {left_out} landmarks are kept out, and {len(parts.asked)} photos ask for the "
        "others. This takes about five minutes for 1,400 photos"
    )
    if labels.missing:
        text += f"; {labels.missing} photos of the list were not found"
    return text


def table(result: dict) -> list[str]:
    """Returns the lines of what was measured."""
    asked = f"mAP in percent, {result['asked']} photos ask"
    lines = [f"{asked:<34}{'before':>8}{'trained':>10}"]
    for kind, words in KINDS.items():
        before, after = (100 * result[when][kind] for when in ("before", "after"))
        lines.append(f"{words:<34}{before:>8.1f}{after:>10.1f}")
    told = "the trained network describes your photos from now on"
    if not result["kept"]:
        told = "the network stays as it is, since the trained one is worse at one of them"
    return [*lines, told]
