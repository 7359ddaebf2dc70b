"""The photos of HOW's training: who shows the same landmark, and pairs of query and positive."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np
from PIL import Image

from dolg_tf.data import photo_files, photo_ids
from dolg_tf.data.own_photos import read_labels
from dolg_tf.data.pickled_arrays import Arrays, opened
from dolg_tf.stage import plain_pickle
from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesData

_MOST_BYTES, _MOST_OPCODES = 1 << 30, 20_000_000
_AHEAD = 8  # photos that are read while others are described


@dataclasses.dataclass(frozen=True)
class TuplePhotos:
    """Photos by number, their landmarks, and the pairs that may be drawn.

    Attributes:
      paths: of the files.
      clusters: int64 (N,), which landmark each shows.
      pairs: int64 (P, 2), given queries and positives; None: any two photos of a landmark.
      upright: whether photos are turned by their EXIF orientation.
      size: longest side of a photo, in pixels.
    """

    paths: Sequence[pathlib.Path]
    clusters: np.ndarray
    pairs: np.ndarray | None
    upright: bool
    size: int

    def draw_pairs(self, random: "Draws", count: int) -> np.ndarray:
        """Returns at most `count` different pairs, int64 (n, 2), query and positive."""
        if self.pairs is not None:
            return self.pairs[random.order(len(self.pairs))[:count]]
        order = np.argsort(self.clusters, kind="stable")
        _, starts, sizes = np.unique(self.clusters[order], return_index=True, return_counts=True)
        group = np.repeat(np.arange(len(sizes)), sizes)
        place = np.flatnonzero(sizes[group] > 1)  # places in `order` of those with company
        place = place[random.order(len(place))[:count]]
        start, size = starts[group[place]], sizes[group[place]]
        other = 1 + random.numbers(len(place)) % (size - 1).astype(np.uint64)
        positive = start + (place - start + other.astype(np.int64)) % size
        return np.stack([order[place], order[positive]], axis=1)

    def load(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Yields photos, uint8 RGB (H, W, 3), each at its own size; some are read ahead.

        Raises:
          InputError: naming a photo that cannot be read.
        """
        waiting = []
        with futures.ThreadPoolExecutor(2) as pool:
            try:
                for number in numbers:
                    waiting.append(pool.submit(self._read, self.paths[number]))
                    if len(waiting) > _AHEAD:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for each in waiting:
                    each.cancel()

    def _read(self, path: pathlib.Path) -> np.ndarray:
        try:
            data = photo_files.read_file(path)
            pixels = photo_files.decode(data, upright=self.upright, reduce_to=2 * self.size)
        except (photo_files.UnusablePhoto, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}); repair it, or unlist it") from error
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(image)


class Draws:
    """Random numbers that depend on a key alone, and not on NumPy's version.

    Args:
      key: two numbers, such as seed and epoch.
    """

    def __init__(self, *key: int):
        self._bits = np.random.Philox(key=np.array(key, np.uint64))

    def numbers(self, count: int) -> np.ndarray:
        """Returns uint64 (count,)."""
        return self._bits.random_raw(count)

    def order(self, count: int) -> np.ndarray:
        """Returns a permutation of 0 to count - 1, int64."""
        return np.argsort(self.numbers(count), kind="stable")


def read_photos(data: TuplesData) -> TuplePhotos:
    """Lists the photos of `--photos`; of a labels.csv, those of the split "train".

    Raises:
      InputError: if the list cannot be read, or its photos make no pair.
    """
    source = pathlib.Path(data.photos)
    root = pathlib.Path(data.image_root or source.parent)
    if not source.is_file():
        raise InputError(f"--photos={source}: no such file; give a labels.csv or a .pkl")
    if source.suffix == ".pkl":
        found = _of_sfm(source, root, data.image_size)
    else:
        rows = read_labels(source)["train"]
        paths = [root / path for path, _ in rows]
        _, clusters = np.unique([landmark for _, landmark in rows], return_inverse=True)
        found = TuplePhotos(paths, clusters.astype(np.int64), None, True, data.image_size)
    if not len(found.draw_pairs(Draws(0, 0), 1)):
        raise InputError(f"--photos={source}: no two training photos show the same landmark")
    missing = next((path for path in found.paths[:1] if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such photo; give another --image_root")
    return found


def _of_sfm(source: pathlib.Path, root: pathlib.Path, size: int) -> TuplePhotos:
    """Returns the photos and pairs of the split "train" of retrieval-SfM-120k.pkl."""
    values = _unpickled(source)
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict):
        raise InputError(f"{source} has no 'train'; give retrieval-SfM-120k.pkl")
    columns = {name: _column(source, train, name) for name in ("cluster", "qidxs", "pidxs")}
    cids, clusters = train.get("cids"), columns["cluster"]
    cids = cids.tolist() if isinstance(cids, np.ndarray) else cids
    if not isinstance(cids, list) or len(cids) != len(clusters):
        raise InputError(f"{source}: cids and cluster must be two lists of the same length")
    try:
        paths = [root / "ims" / photo_ids.of_sfm(cid) for cid in cids]
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if len(columns["qidxs"]) != len(columns["pidxs"]):
        raise InputError(f"{source}: qidxs and pidxs must be of the same length")
    pairs = np.stack([columns["qidxs"], columns["pidxs"]], axis=1)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(cids):
        raise InputError(f"{source}: qidxs and pidxs must be numbers of its {len(cids)} photos")
    return TuplePhotos(paths, clusters, pairs, False, size)


def _column(source: pathlib.Path, train: dict, name: str) -> np.ndarray:
    value = opened(train.get(name))
    try:
        column = np.asarray(value)
        if column.ndim == 1 and (column.dtype.kind in "iu" or not column.size):
            return column.astype(np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    raise InputError(f"{source}: train, {name}: {value!r:.60} is not a list of whole numbers")


def _unpickled(source: pathlib.Path):
    arrays = Arrays(_MOST_BYTES)
    try:
        return plain_pickle.unpickle(
            io.BytesIO(source.read_bytes()),
            arrays.find,
            build=arrays.build,
            most_bytes=_MOST_BYTES,
            most_opcodes=_MOST_OPCODES,
        )
    except plain_pickle.Refused as error:
        raise InputError(f"{source}: refused: {error}; give retrieval-SfM-120k.pkl") from error
