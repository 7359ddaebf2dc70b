"""Sets of local features -> an inverted file, in bounded memory.

Photos are aggregated piece by piece; a piece on disk holds the entries of some photos, sorted by
word. Then the pieces are merged, some words at a time. What is killed continues behind its last
piece.
"""

import contextlib
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dolg_tf.retrieval.asmk import lists, search, words
from dolg_tf.retrieval.asmk.aggregate import over_regions, residual_sums
from dolg_tf.retrieval.asmk.kernel import Kernel
from dolg_tf.retrieval.asmk.lists import Writer
from dolg_tf.retrieval.asmk.words import Codebook
from dolg_tf.stage import checksums, files, progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

# Photos in a piece, the most that a killed run loses. Half a million entries at 500 words a photo.
PIECE_BINARY, PIECE_REAL = 1024, 128
_MERGED = 1 << 26  # bytes of entries that are merged at once
_FORMAT_VERSION = 1


def entries_of(
    regions: Sequence[np.ndarray], codebook: Codebook, kernel: Kernel, assignments: int
) -> tuple[np.ndarray, np.ndarray]:
    """Aggregates an image.

    Args:
      regions: descriptors, float32 (N, D), of the whole image, then of each of its regions; one
        alone is not averaged.
      codebook: the words.
      kernel: what is stored.
      assignments: words per descriptor.

    Returns:
      Its words, ascending, int64 (W,), and what is stored of them, (W, width).
    """
    parts = []
    for descriptors in regions:
        found = codebook.nearest(descriptors, assignments)
        parts.append(residual_sums(descriptors, found, codebook.centroids))
    present, sums = parts[0] if len(parts) == 1 else over_regions(parts, kernel.dimensions)
    counts = kernel.present(sums)
    return present[counts], kernel.encode(sums[counts])


class Pieces:
    """The aggregated photos of an unfinished index, in a folder of pieces.

    Args:
      folder: where they are, or will be.
      photos: number of photos in the index.
      kernel: what is stored.
    """

    def __init__(self, folder: pathlib.Path, photos: int, kernel: Kernel):
        self._folder, self._photos, self._kernel = folder, photos, kernel
        self._size = PIECE_BINARY if kernel.binary else PIECE_REAL
        self.count = -(-photos // self._size)

    def begin(self, about: dict) -> None:
        """Makes sure that what is there was begun for the same index.

        Args:
          about: what made the pieces.

        Raises:
          InputError: when it was not.
        """
        file = self._folder / "begun.json"
        if self._folder.exists() and file.exists():
            if files.read_json(file, _FORMAT_VERSION).get("about") != about:
                raise InputError(
                    f"{self._folder} was begun with other photos, another codebook or other "
                    "settings; delete it, or choose another --output"
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_json(file, {"format_version": _FORMAT_VERSION, "about": about})

    def span(self, piece: int) -> range:
        """Returns the photos of a piece."""
        return range(piece * self._size, min((piece + 1) * self._size, self._photos))

    def todo(self) -> list[int]:
        """Returns the pieces that are not there yet."""
        return [piece for piece in range(self.count) if not self._path(piece).is_dir()]

    def write(self, piece: int, entries: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Writes a piece: words and codes of each of its photos."""
        found = np.concatenate([present for present, _ in entries])
        rows = np.repeat(self.span(piece), [len(present) for present, _ in entries])
        codes = np.concatenate([codes for _, codes in entries])
        order = np.argsort(found, kind="stable")
        with files.atomic_path(self._path(piece)) as temporary:
            temporary.mkdir()
            np.save(temporary / "words.npy", found[order].astype(np.int32))
            np.save(temporary / "rows.npy", rows[order].astype(np.int32))
            np.save(temporary / "codes.npy", codes[order])

    def _path(self, piece: int) -> pathlib.Path:
        return self._folder / f"piece-{piece:05d}"

    def counts(self, size: int) -> np.ndarray:
        """Returns the number of images that have each of `size` words, int64."""
        found = np.zeros(size, np.int64)
        for piece in range(self.count):
            found += np.bincount(self._load(piece, "words"), minlength=size)
        return found

    def last(self) -> int:
        """Returns the last image that has a word; -1: none has."""
        return max(int(self._load(i, "rows").max(initial=-1)) for i in range(self.count))

    def merged(self, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields words, rows and codes of all entries, by word and row, in blocks.

        Args:
          counts: entries of each word.
        """
        room = max(1, _MERGED // (8 + self._kernel.width * self._kernel.dtype.itemsize))
        ends = np.cumsum(counts)
        first = 0
        while first < len(counts):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + room, side="right")))
            parts = [self._between(piece, first, last) for piece in range(self.count)]
            found, rows, codes = (np.concatenate(part) for part in zip(*parts, strict=True))
            order = np.argsort(found, kind="stable")  # pieces are in the order of their rows
            yield found[order], rows[order], codes[order]
            first = last

    def _between(self, piece: int, first: int, last: int) -> tuple[np.ndarray, ...]:
        """Returns the entries of a piece from a word on to the one before another.

        They are copies: a mapped file stays open, and there may be more pieces than files may be.
        """
        span = slice(*np.searchsorted(self._load(piece, "words"), [first, last]))
        return tuple(np.array(self._load(piece, name)[span]) for name in ("words", "rows", "codes"))

    def _load(self, piece: int, name: str) -> np.ndarray:
        path = self._path(piece) / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
        except (*files.DAMAGED_ARRAYS, OSError) as error:
            raise InputError(
                f"{path}: damaged ({error}); delete its folder, and run the same command again"
            ) from error

    def clear(self) -> None:
        """Removes all pieces."""
        shutil.rmtree(self._folder)


def build_index(
    path: pathlib.Path,
    ids: Sequence[str],
    regions_of: Callable[[int], Sequence[np.ndarray]],
    codebook: Codebook,
    meta: dict,
    made_from: str,
) -> None:
    """Indexes images, or continues to.

    Args:
      path: of the index; anything there is replaced. Pieces are in PATH.unfinished.
      ids: of the images.
      regions_of: returns the descriptors of an image and of its regions, see `entries_of`.
      codebook: the words.
      meta: for `meta.json`, without what is counted here.
      made_from: a word for features, codebook and regions: another run is not continued.

    Raises:
      InputError: when other images or settings were begun.
    """
    kernel = lists.kernel_of(meta)
    pieces = Pieces(path.with_name(f"{path.name}.unfinished"), len(ids), kernel)
    pieces.begin({"meta": meta, "made_from": made_from})
    spans = {piece: pieces.span(piece) for piece in pieces.todo()}
    if len(spans) < pieces.count:
        log.info("%d of %d pieces are done already", pieces.count - len(spans), pieces.count)
    stream = (regions_of(image) for span in spans.values() for image in span)
    tracked = progress.track(stream, sum(map(len, spans.values())), "aggregate")
    for piece, span in spans.items():
        some = itertools.islice(tracked, len(span))
        found = [entries_of(one, codebook, kernel, meta["assignments"]) for one in some]
        pieces.write(piece, found)
    write_index(path, ids, pieces, codebook, meta)
    pieces.clear()


def write_index(
    path: pathlib.Path, ids: Sequence[str], pieces: Pieces, codebook: Codebook, meta: dict
) -> None:
    """Merges pieces to an index, whole or not at all.

    Args:
      path: of the index; anything there is replaced.
      ids: of the images.
      pieces: all of them.
      codebook: the words.
      meta: for `meta.json`, without what is counted here.
    """
    counts = pieces.counts(len(codebook))
    kernel, total = lists.kernel_of(meta), int(counts.sum())
    norms = np.zeros(len(ids))
    if meta["idf"]:
        # The N of the weights; the asmk package does not see images behind the last with features.
        counted = pieces.last() + 1 if meta["variant"] == "how" else len(ids)
        meta = meta | {"counted": counted}
        weights = search.weights_of_counts(counts, counted)
    else:
        weights = np.ones(len(codebook))
    with files.atomic_path(path) as temporary, contextlib.ExitStack() as open_files:
        temporary.mkdir()
        np.save(temporary / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
        rows_file = open_files.enter_context(Writer(temporary / "rows.npy", (total,), np.int32))
        shape = (total, kernel.width)
        codes_file = open_files.enter_context(Writer(temporary / "codes.npy", shape, kernel.dtype))
        blocks = pieces.merged(counts)
        for found, rows, codes in progress.track(blocks, _blocks(total, kernel), "merge", "blocks"):
            rows_file.add(rows)
            codes_file.add(codes)
            norms += np.bincount(rows, weights[found], len(ids))
        open_files.close()
        np.save(temporary / "norms.npy", np.sqrt(norms))
        words.write_codebook(temporary / "codebook.npz", codebook)
        files.write_text(temporary / "ids.txt", "".join(f"{id_}\n" for id_ in ids))
        about = {"photos": len(ids), "words": len(codebook), "entries": total}
        names = [file.name for file in temporary.iterdir()]
        sums = checksums.of_files(temporary, names)
        checksums.write_json(temporary / "meta.json", meta | about, sums)


def _blocks(total: int, kernel: Kernel) -> int:
    return max(1, -(-total * (8 + kernel.width * kernel.dtype.itemsize) // _MERGED))
