"""The photos of `ablations.py`, their backbone maps, and the landmarks that a split leaves out."""

import dataclasses
import functools
import pathlib

import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.data.own_photos import read_labels
from dolg_tf.modeling import dolg
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.stage import files, progress
from dolg_tf.weights import imagenet

SIDE = 288  # pixels; photos are stretched to a square
FOLDS = 3


# --- photos -> maps of the backbone -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps of photos, or the photos themselves, and the landmark that each shows.

    Attributes:
      arrays: {"p3"|"p4"|"p5": float16 (N, M, h, w, C)} or {"photo": uint8 (N, M, h, w, 3)}; M is 2
        with mirror images, else 1.
      landmarks: int (N,).
    """

    arrays: dict[str, np.ndarray]
    landmarks: np.ndarray

    def batch(self, rows, mirrored=None) -> list[np.ndarray]:
        """Returns float32 arrays of these rows; photos are scaled to [0, 1]."""
        mirrored = np.zeros(len(rows), np.int64) if mirrored is None else mirrored
        found = {name: array[rows, mirrored] for name, array in self.arrays.items()}
        return [
            x / np.float32(255) if name == "photo" else x.astype(np.float32)
            for name, x in found.items()
        ]

    def only(self, keep: np.ndarray) -> "Maps":
        return Maps(
            {name: array[keep] for name, array in self.arrays.items()}, self.landmarks[keep]
        )


def compute_maps(
    folder: pathlib.Path, cache: pathlib.Path, config: DolgConfig | None
) -> dict[str, Maps]:
    """Returns the maps of each split, cached; without a config, the photos themselves."""
    labels = read_labels(folder / "labels.csv")
    names = landmark_names(labels)
    mark = files.sha256(folder / "labels.csv")[:8]
    found, model = {}, None
    kind, levels = ("photos", ("photo",))
    if config is not None:
        kind, levels = f"{config.backbone}-{config.stride32}", dolg.MAPS
    for split, rows in labels.items():
        landmarks = np.array([names.index(landmark) for _, landmark in rows])
        place = cache / f"{kind}-{SIDE}-{mark}-{split}"
        if not place.exists():
            model = model or (_as_bytes if config is None else _backbone(config))
            paths = [folder / path for path, _ in rows]
            with files.atomic_path(place) as temporary:
                temporary.mkdir()
                for level, array in zip(levels, _describe(model, paths, split), strict=True):
                    np.save(temporary / f"{level}.npy", array)
        arrays = {level: np.load(place / f"{level}.npy", mmap_mode="r") for level in levels}
        if len(arrays[levels[0]]) != len(landmarks):
            raise SystemExit(f"{place} belongs to other photos; delete it")
        found[split] = Maps(arrays, landmarks)
    return found


def landmark_names(labels: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Returns the landmarks of `read_labels`; a landmark's number is its position."""
    return sorted({landmark for rows in labels.values() for _, landmark in rows})


def _backbone(config: DolgConfig):
    network = dolg.build_dolg(config, seed=0)
    imagenet.load_backbone(network, config.backbone)
    normalize, backbone = network.get_layer("normalization"), network.get_layer("backbone")

    @functools.partial(tf.function, reduce_retracing=True)
    def maps_of(photos):
        return [tf.cast(level, tf.float16) for level in backbone(normalize(photos), training=False)]

    return maps_of


def _as_bytes(photos):
    return [tf.cast(tf.round(255 * photos), tf.uint8)]


def _describe(model, paths: list[pathlib.Path], split: str) -> list[np.ndarray]:
    def load(path):
        photo = images.resize_levels(images.decode(tf.io.read_file(path)), SIDE, SIDE)
        return tf.stack([photo, photo[:, ::-1]]) if split == "train" else photo[None]

    photos = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    photos = photos.map(load, num_parallel_calls=2).prefetch(8)
    rows = []
    for photo in progress.track(photos, len(paths), f"maps of {split}"):
        rows.append([level.numpy() for level in model(photo)])
    return list(map(np.stack, zip(*rows, strict=True)))


# --- splits -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Splits:
    """The landmarks that each split leaves out of training.

    Attributes:
      maps: by the splits of labels.csv: train, index and query.
      together: numbers of landmarks that show one another.
    """

    maps: dict[str, Maps]
    together: tuple[int, ...]

    @functools.cached_property
    def folds(self) -> np.ndarray:
        """The fold that leaves out each landmark, int (landmarks,)."""
        count = 1 + max(int(maps.landmarks.max()) for maps in self.maps.values())
        folds, sizes = np.zeros(count, np.int64), [len(self.together), *[0] * (FOLDS - 1)]
        for landmark in sorted(set(range(count)) - set(self.together)):
            folds[landmark] = int(np.argmin(sizes))
            sizes[folds[landmark]] += 1
        return folds

    def queries(self, split: str) -> Maps:
        """Returns the queries that score a split."""
        maps = self.maps["query"]
        return maps if split == "seen" else maps.only(self._left_out(split)[maps.landmarks])

    def outer(self, split: str) -> tuple[Maps, Maps]:
        """Returns the training photos of a split and the queries that score it."""
        maps = self.maps["train"]
        if split != "seen":
            maps = maps.only(~self._left_out(split)[maps.landmarks])
        return maps, self.queries(split)

    def _left_out(self, split: str) -> np.ndarray:
        return self.folds == int(split.removeprefix("fold"))

    def inner(self, split: str) -> tuple[Maps, Maps, Maps]:
        """Returns training photos, queries and index for choosing a learning rate.

        A third of the split's training landmarks is held out. Every fifth of their photos is a
        query; the others form the index.
        """
        maps, _ = self.outer(split)
        names = [x for x in np.unique(maps.landmarks) if x not in self.together]
        held = np.isin(maps.landmarks, names[::FOLDS])
        rest = maps.only(held)
        query = np.arange(len(rest.landmarks)) % 5 == 0
        return maps.only(~held), rest.only(query), rest.only(~query)
