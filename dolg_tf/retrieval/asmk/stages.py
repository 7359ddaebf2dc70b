"""Search by local features: learn visual words, index photos by them, compare queries.

dolg asmk codebook --local=SET --output=codebook.npz
dolg asmk build --local=SET --codebook=codebook.npz --output=INDEX
dolg asmk query --index=INDEX --local=SET --output=SCORES
"""

import dataclasses
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval import scores
from dolg_tf.retrieval.asmk import build as building
from dolg_tf.retrieval.asmk import learn, lists, words
from dolg_tf.retrieval.asmk.kernel import VARIANTS, Kernel
from dolg_tf.retrieval.asmk.lists import Inverted
from dolg_tf.retrieval.asmk.regions import Regions, read_regions, within
from dolg_tf.retrieval.asmk.search import Search
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.with_faiss import import_faiss
from dolg_tf.stage import files, progress, workshop
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

_SAID = 20  # queries whose answers are logged
_FOUND = "found.csv"
_UNIT = 1e-3  # difference of a length from 1, of float16 too


def _space(found: LocalFeatureSet) -> dict:
    """Returns what is kept of how features were made, to compare it with that of others."""
    _, made = feature_set.how_made(found)
    return {key: made.get(key) for key in feature_set.SAME_SPACE}


def _read(path: str) -> LocalFeatureSet:
    """Reads local features.

    Raises:
      InputError: when the set is damaged, or has features of HOW that have lost their length, by
        which ASMK weighs them.
    """
    found = feature_set.read(path)
    if found.meta["kind"] == "how":
        for row in np.flatnonzero(found.counts)[:1].tolist():
            lengths = np.linalg.norm(found[row].descriptors, axis=1)
            if np.abs(lengths - 1).max() < _UNIT:
                raise InputError(
                    f"{found.source}: HOW's features of {found.ids[row]!r} all have length 1, but "
                    "ASMK takes them as the network gives them: extract with an export of "
                    "--mode=serving, and --local_dtype=float16 or float32"
                )
    return found


# --- codebook ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """The local features from which visual words are learned, and how many."""

    local: str = option("local feature set of photos to learn from; not of those that are scored")
    output: str = option("codebook to write, an .npz")
    words: int = option(
        "visual words; 65,536 for many landmarks and a million photos, 1,024 to 16,384 for "
        "thousands",
        65536,
    )
    points: int = option(
        "local features per word, at most 256: those that are learned from, in memory", 256
    )
    overwrite: bool = option("replace an existing codebook", False)

    def __post_init__(self):
        at_least(self, words=1, points=1)
        if self.points > learn.PER_WORD:
            raise InputError(f"--points={self.points}: k-means takes at most {learn.PER_WORD}")
        if not self.output.endswith(".npz"):
            raise InputError(f"--output={self.output} must end in .npz")


def codebook(settings: CodebookConfig) -> None:
    """Learns visual words by k-means: local features in, a codebook out.

    The same command continues an interrupted run.

    Raises:
      InputError: when the set is damaged, or has fewer features than words.
    """
    files.check_output(settings.output, settings.overwrite)
    import_faiss("a codebook")
    found, path = _read(settings.local), pathlib.Path(settings.output)
    learn.check_enough(int(found.counts.sum()), settings.words)
    digest = hashlib.sha256(found.sums.tobytes()).hexdigest()
    about = _space(found) | {"photos": len(found), "features": digest, "points": settings.points}
    rows = learn.sample(found, settings.points * settings.words)
    told = (len(rows), int(found.counts.sum()), len(found))
    log.info("%d of %d local features of %d photos", *told)
    unfinished = path.with_name(f"{path.stem}.unfinished.npz")
    learned = learn.k_means(rows, settings.words, unfinished, about)
    words.write_codebook(path, learned)
    unfinished.unlink()
    log.info("%s: %d words of %d numbers", path, *learned.centroids.shape)


# --- build ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Which photos are indexed by their local features, and how."""

    local: str = option("local feature set of the photos to search in")
    codebook: str = option("codebook (.npz) that `dolg asmk codebook` wrote")
    output: str = option("ASMK index (a directory) to write")
    variant: str = option(
        "whose ASMK: dolg; how, the asmk package, with bits padded to 32; delf, Detect-to-Retrieve",
        "dolg",
        choices=tuple(VARIANTS),
    )
    assignments: int = option("nearest words that a local feature of a photo counts for", 1)
    binary: bool = option("keep signs, a bit per number, instead of unit vectors of float32", True)
    idf: bool = option("weigh words by the square of their inverse document frequency", False)
    regions: str = option(
        "CSV of regions that count as much as the whole photo each: id, top, left, bottom and "
        "right in its pixels; or id and region, a photo of the set that shows a part of it, as "
        "DELF's. Empty: none",
        "",
    )
    overwrite: bool = option("replace an existing ASMK index", False)

    def __post_init__(self):
        at_least(self, assignments=1)
        if self.idf and self.variant == "delf":
            raise InputError("--idf: DELF's variant has no such weights; give another --variant")


def build(settings: BuildConfig) -> Inverted:
    """Indexes photos by visual words: local features and a codebook in, an ASMK index out.

    The same command continues an interrupted run.

    Raises:
      InputError: when codebook and features are of different models, or the output exists.
    """
    path = pathlib.Path(settings.output)
    files.check_output(path, settings.overwrite, "offsets.npy", "meta.json")
    book, found = words.read_codebook(settings.codebook), _read(settings.local)
    _check_codebook(settings.codebook, book, found)
    _check_assignments(settings.assignments, len(book))
    regions = read_regions(settings.regions) if settings.regions else Regions({}, {})
    photos = _Photos(found, regions)
    kept = ("image_root", "image_roots", "crop", "max_side", "scales", "max_features")
    meta = _space(found) | {key: found.meta[key] for key in kept if key in found.meta}
    meta |= {"contents": lists.CONTENTS, "variant": settings.variant, "binary": settings.binary}
    meta |= {"idf": settings.idf, "regions": bool(settings.regions), "counted": len(photos)}
    meta |= {"assignments": settings.assignments, "dimensions": book.centroids.shape[1]}
    meta["format_version"] = lists.FORMAT_VERSION
    taken = f"{path}: another process is building this index; wait for it"
    with files.lock(workshop.hidden(path, "lock"), taken):
        made_from = _made_from(settings, found, regions)
        building.build_index(path, photos.ids, photos.regions, book, meta, made_from)
    opened = Inverted.open(path)
    per_photo = opened.meta["entries"] / len(opened)
    log.info("%s: %d photos, %.1f words per photo", path, len(opened), per_photo)
    return opened


class _Photos:
    """The photos of an index, with the features of their regions."""

    def __init__(self, found: LocalFeatureSet, regions: Regions):
        self._found, self._regions = found, regions
        named = list(itertools.chain(*regions.crops.values()))
        self._row_of = dict(zip(named, found.rows_of(named).tolist(), strict=True))
        parts = set(self._row_of.values())
        self._rows = [row for row in range(len(found)) if row not in parts]
        self.ids = [found.ids[row] for row in self._rows]
        known = set(self.ids)
        for id_ in (*regions.boxes, *regions.crops):
            if id_ not in known:
                raise InputError(
                    f"--regions names {id_!r}, which is not a photo of {found.source}, or a region"
                )
        if not self.ids:
            raise InputError(f"{found.source}: no photos to index")

    def __len__(self) -> int:
        return len(self.ids)

    def regions(self, photo: int) -> list[np.ndarray]:
        """Returns the descriptors of a photo, and of each of its regions."""
        whole, id_ = self._found[self._rows[photo]], self.ids[photo]
        boxes = self._regions.boxes.get(id_, ())
        crops = self._regions.crops.get(id_, ())
        return [
            whole.descriptors,
            *(whole.descriptors[within(whole.positions, box)] for box in boxes),
            *(self._found[self._row_of[crop]].descriptors for crop in crops),
        ]


def _made_from(settings: BuildConfig, found: LocalFeatureSet, regions: Regions) -> str:
    """Returns a hash of what an index is made from."""
    made = hashlib.sha256(found.sums.tobytes())
    for text in (found.ids, sorted(regions.boxes.items()), sorted(regions.crops.items())):
        made.update(repr(text).encode())
    made.update(files.sha256(settings.codebook).encode())
    return made.hexdigest()


def _check_codebook(path: str, book: words.Codebook, found: LocalFeatureSet) -> None:
    """Makes sure that words fit features: learned on those of its network, if known."""
    if book.space:
        words.check_same({path: book.space, found.source: _space(found)})
    width = book.centroids.shape[1]
    if width != found.meta["dimensions"]:
        raise InputError(
            f"--codebook={path} has words of {width} numbers, {found.source} features of "
            f"{found.meta['dimensions']}; give another codebook"
        )


def _check_assignments(count: int, known: int) -> None:
    if count > known:
        raise InputError(f"--assignments={count}: the codebook has {known} words")


# --- query ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """What is searched for by its local features, and in which index."""

    index: str = option("ASMK index (a directory)")
    local: str = option("local feature set of the queries")
    output: str = option(
        "scores (a directory) to write, of all photos for each query: 4 bytes each; "
        "`dolg evaluate revisited --scores` takes it"
    )
    assignments: int = option(
        "nearest words that a local feature of a query counts for; 0: 5, in an index of DELF's "
        "variant 1",
        0,
    )
    alpha: float = option("exponent of the similarity of two photos at a word", 3.0)
    threshold: float = option("similarities at a word below this do not count", 0.0)
    k: int = option(f"best photos per query in OUTPUT/{_FOUND}; 0: no such file", 10)
    overwrite: bool = option("replace existing scores", False)

    def __post_init__(self):
        at_least(self, assignments=0, k=0)
        if not 0 < self.alpha <= 100:
            raise InputError(f"--alpha={self.alpha} must be above 0, and at most 100")
        if not -1 <= self.threshold <= 1:
            raise InputError(f"--threshold={self.threshold} must be from -1 to 1")


def query(settings: QueryConfig) -> None:
    """Compares queries with all photos of an ASMK index: local features in, scores out.

    Raises:
      InputError: when index and queries are of different models, or the output exists.
    """
    output = pathlib.Path(settings.output)
    files.check_output(output, settings.overwrite, "scores.npy", "meta.json")
    index = Inverted.open(settings.index)
    kernel = lists.kernel_of(index.meta, settings.alpha, settings.threshold)
    found = _read(settings.local)
    made = {settings.index: index.meta, found.source: _space(found)}
    words.check_same(made, feature_set.SAME_SPACE)
    assignments = settings.assignments or (1 if kernel.variant == "delf" else 5)
    assignments = assignments if settings.assignments else min(assignments, len(index.codebook))
    _check_assignments(assignments, len(index.codebook))
    size = 4e-9 * len(found) * len(index)
    log.info("%d queries x %d photos, %.2g GB", len(found), len(index), size)
    meta = {"method": "asmk", "alpha": settings.alpha, "threshold": settings.threshold}
    meta |= {"assignments": assignments, "index": index.meta}
    meta |= {key: found.meta.get(key) for key in ("image_root", "crop", "query_scale")}
    answers = [["query", "rank", "id", "score"]]
    with files.atomic_path(output) as temporary:
        temporary.mkdir()
        rows = _scores(index, kernel, found, assignments)
        rows = _kept(rows, found.ids, index.ids, settings.k, answers)
        scores.write(temporary, found.ids, index.ids, rows, meta | _space(found))
        if settings.k:
            write_table(temporary / _FOUND, answers[0], answers[1:])
    for name, _, id_, score in [line for line in answers[1:] if line[1] == 1][:_SAID]:
        log.info("%s: %s, score %s", name, id_, score)


def _scores(
    index: Inverted, kernel: Kernel, found: LocalFeatureSet, assignments: int
) -> Iterator[np.ndarray]:
    """Yields the scores of all photos for each query, float32 (N,)."""
    search = Search(index, kernel)
    for row in progress.track(range(len(found)), len(found), "query", "queries"):
        described = [found[row].descriptors]
        present, codes = building.entries_of(described, index.codebook, kernel, assignments)
        yield search.scores(present, codes).astype(np.float32)


def _kept(rows: Iterator, queries, ids, k: int, answers: list) -> Iterator[np.ndarray]:
    """Passes scores on, and adds the lines of the k best photos of each to the answers."""
    for name, row in zip(queries, rows, strict=True):
        yield row
        for place, best in enumerate(_best(row, k), 1):
            answers.append([name, place, ids[best], f"{row[best]:.9g}"])


def _best(row: np.ndarray, k: int) -> np.ndarray:
    """Returns the k highest scores, the lower number first among equals."""
    k = min(k, len(row))
    if not k:
        return np.empty(0, np.int64)
    least = np.partition(row, len(row) - k)[len(row) - k]
    among = np.flatnonzero(row >= least)
    return among[np.argsort(-row[among], kind="stable")[:k]]
