"""Writes a procedural landmark set in the layout of Google Landmarks v2.

    train/a/b/c/ID.jpg, train.csv, train_clean.csv       the trained landmarks
    index/a/b/c/ID.jpg, test/a/b/c/ID.jpg                other photos, to search with queries
    gnd_seen.pkl, gnd_unseen.pkl                         ground truths in the Revisited form

The index holds half of the trained landmarks (seen) and landmarks that are not trained on
(unseen); each half serves as distractors for the other. `a/b/c` are the first digits of the ID.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import logging
import multiprocessing
import os
import pathlib
import pickle
import signal
from collections.abc import Iterator

import numpy as np

from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError, at_least, option, to_dict
from dolg_tf.stage.processes import end_with_parent
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_MANIFEST = "toy.json"
_RESULTS = ("train.csv", "train_clean.csv", "gnd_seen.pkl", "gnd_unseen.pkl")
_SPLITS = ("train", "index", "test")
# Cycled over the training photos of a landmark, and over its index photos.
_TRAIN_SEVERITIES = ("easy", "hard", "easy", "hard", "easy")
_INDEX_SEVERITIES = (*("easy", "hard", "junk") * 3, "easy", "hard", "easy")
# Landmarks are drawn larger than photos, for close views.
_CANVAS = 2.4
_CHUNK = 32
# GLDv2's own landmark ids are below this.
_LANDMARK_IDS = 203_094


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Options of a procedural landmark set."""

    output: str = option("folder to write")
    landmarks: int = option("number of trained landmarks", 60, unit="landmarks")
    unseen_landmarks: int = option(
        "number of landmarks that are searched for but not trained on", 30, unit="landmarks"
    )
    photos_per_landmark: int = option("training photos per landmark", 30, unit="photos")
    index_per_landmark: int = option("index photos per searched landmark", 12, unit="photos")
    queries_per_landmark: int = option("query photos per searched landmark", 3, unit="photos")
    size: int = option("longest side of the photos", 160, unit="pixels")
    seed: int = option("random seed; another seed gives another set", 0)
    processes: int = option("worker processes; 0: one per core", 0, unit="processes")

    def __post_init__(self):
        at_least(
            self,
            landmarks=2,
            unseen_landmarks=1,
            photos_per_landmark=1,
            index_per_landmark=3,
            queries_per_landmark=1,
            seed=0,
            processes=0,
        )
        if not 48 <= self.size <= 1024:
            raise InputError(f"--size={self.size} must be 48 to 1024 pixels")


@dataclasses.dataclass(frozen=True)
class _Photo:
    """A photo to render: `number` counts the photos of a landmark in a split."""

    landmark: int
    split: str
    number: int
    severity: str
    id: str

    @property
    def path(self) -> str:
        """Path relative to the set, without suffix."""
        return "/".join((self.split, *self.id[:3], self.id))


def _list_photos(config: ToyConfig) -> list[_Photo]:
    """Returns all photos of the set, sorted by id."""
    searched = {*range(config.landmarks // 2)}
    searched |= {*range(config.landmarks, config.landmarks + config.unseen_landmarks)}
    photos = []
    for landmark in range(config.landmarks + config.unseen_landmarks):
        counts = (
            ("train", config.photos_per_landmark * (landmark < config.landmarks)),
            ("index", config.index_per_landmark * (landmark in searched)),
            ("test", config.queries_per_landmark * (landmark in searched)),
        )
        for split, count in counts:
            for number in range(count):
                cycle = {"train": _TRAIN_SEVERITIES, "index": _INDEX_SEVERITIES, "test": ("easy",)}
                severity = cycle[split][number % len(cycle[split])]
                name = f"{config.seed}/{split}/{landmark}/{number}".encode()
                id = hashlib.blake2b(name, digest_size=8).hexdigest()
                photos.append(_Photo(landmark, split, number, severity, id))
    return sorted(photos, key=lambda photo: photo.id)


# --- rendering -----------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _landmark(seed: int, number: int, side: int):
    from dolg_tf.data.procedural import scene

    return scene.draw_landmark(seed, number, side)


def _render(config: ToyConfig, photos: list[_Photo]) -> list[tuple[float, ...]]:
    """Writes the photos that do not exist yet, and returns the landmark's box in each."""
    from dolg_tf.data.procedural import camera

    boxes = []
    for photo in photos:
        landmark = _landmark(config.seed, photo.landmark, round(_CANVAS * config.size))
        # 0 after the landmark is the seed of its drawing; see draw_landmark.
        split = _SPLITS.index(photo.split) + 1
        rng = np.random.default_rng([config.seed, photo.landmark, split, photo.number])
        view = camera.sample_view(rng, landmark, photo.severity, config.size)
        boxes.append(view.box)
        path = pathlib.Path(config.output, photo.path + ".jpg")
        if not path.exists():
            image = camera.take_photo(rng, landmark, view)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=90)
            files.write_bytes(path, jpeg.getvalue())
    return boxes


def _start_process() -> None:
    # Only the parent handles an interrupt; it lets each process finish its chunk.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _render_all(config: ToyConfig, photos: list[_Photo]) -> Iterator[tuple[_Photo, tuple]]:
    """Renders in worker processes; yields photos with their boxes, unordered."""
    by_landmark = collections.defaultdict(list)
    for photo in photos:
        by_landmark[photo.landmark].append(photo)
    chunks = [
        group[start : start + _CHUNK]
        for group in by_landmark.values()
        for start in range(0, len(group), _CHUNK)
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = min(config.processes or cores or 1, len(chunks))
    if processes == 1:
        for chunk in chunks:
            yield from zip(chunk, _render(config, chunk), strict=True)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, spawn, _start_process)
    try:
        chunk_of = {pool.submit(_render, config, chunk): chunk for chunk in chunks}
        for future in concurrent.futures.as_completed(chunk_of):
            yield from zip(chunk_of[future], future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


# --- the lists -----------------------------------------------------------------------


def _write_train_lists(config: ToyConfig, photos: list[_Photo]) -> None:
    rng = np.random.default_rng(config.seed)
    total = max(_LANDMARK_IDS, 10 * config.landmarks)
    names = rng.choice(total, config.landmarks, replace=False).tolist()
    train = [photo for photo in photos if photo.split == "train"]
    rows = [[p.id, f"procedural:{p.landmark}/{p.number}", names[p.landmark]] for p in train]
    output = pathlib.Path(config.output)
    write_table(output / "train.csv", ["id", "url", "landmark_id"], rows)
    clean = collections.defaultdict(list)
    for photo in train:
        clean[names[photo.landmark]].append(photo.id)
    rows = [[name, " ".join(ids)] for name, ids in sorted(clean.items())]
    write_table(output / "train_clean.csv", ["landmark_id", "images"], rows)


def _ground_truth(queries: list[_Photo], index: list[_Photo], boxes: dict[str, tuple]) -> dict:
    """Returns a ground truth in the form of Revisited Oxford and Paris, in plain containers."""
    places = collections.defaultdict(lambda: {"easy": [], "hard": [], "junk": []})
    for place, photo in enumerate(index):
        places[photo.landmark][photo.severity].append(place)
    gnd = [{"bbx": list(boxes[q.id]), **places[q.landmark]} for q in queries]
    return {
        "imlist": [photo.path for photo in index],
        "qimlist": [query.path for query in queries],
        "gnd": gnd,
    }


def _write_ground_truths(config: ToyConfig, photos: list[_Photo], boxes: dict[str, tuple]) -> None:
    index = [photo for photo in photos if photo.split == "index"]
    queries = [photo for photo in photos if photo.split == "test"]
    for name, seen in (("gnd_seen.pkl", True), ("gnd_unseen.pkl", False)):
        chosen = [query for query in queries if (query.landmark < config.landmarks) == seen]
        with files.atomic_path(pathlib.Path(config.output, name)) as temporary:
            truth = _ground_truth(chosen, index, boxes)
            temporary.write_bytes(pickle.dumps(truth, protocol=2))


# --- the stage -----------------------------------------------------------------------


def _claim_folder(config: ToyConfig) -> None:
    """Writes the manifest, or makes sure that an existing one describes the same set."""
    output = pathlib.Path(config.output)
    manifest = {"format_version": _FORMAT_VERSION, **to_dict(config)}
    del manifest["output"], manifest["processes"]
    path = output / _MANIFEST
    if path.exists():
        found = files.read_json(path, _FORMAT_VERSION)
        for name, value in manifest.items():
            if found.get(name) != value:
                raise InputError(
                    f"{output} holds a set with --{name}={found.get(name)}, not {value}; "
                    "choose another --output, or delete the folder"
                )
        return
    foreign = [name for name in (*_RESULTS, *_SPLITS) if (output / name).exists()]
    if foreign:
        raise InputError(
            f"{output} holds {foreign[0]} but no {_MANIFEST}: this command did not write it; "
            "choose another --output"
        )
    try:
        files.write_json(path, manifest)
    except OSError as error:
        raise InputError(f"--output={output} cannot be written ({error.strerror})") from error


def write_toy(config: ToyConfig) -> None:
    """Writes a procedural landmark set. A second run writes only what is missing.

    Raises:
      InputError: when the folder holds another set, or cannot be written.
    """
    _claim_folder(config)
    output = pathlib.Path(config.output)
    photos = _list_photos(config)
    missing = [photo for photo in photos if not (output / f"{photo.path}.jpg").exists()]
    if not missing and all((output / name).exists() for name in _RESULTS):
        log.info("%s: all %d photos exist", output, len(photos))
        return
    log.info("%s: %d of %d photos to render", output, len(missing), len(photos))
    # Existing queries go along for their boxes.
    queries = [photo for photo in photos if photo.split == "test"]
    todo = sorted({*missing, *queries}, key=lambda photo: photo.id)
    done = progress.track(_render_all(config, todo), len(todo), "render")
    boxes = {photo.id: box for photo, box in done if photo.split == "test"}
    _write_train_lists(config, photos)
    _write_ground_truths(config, photos, boxes)
