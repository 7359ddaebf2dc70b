"""What ASMK costs per photo and per query, beside its floors, and what a million photos would take.

    python benchmarks/speed/asmk.py
    python benchmarks/speed/asmk.py --photos 1000 10000 100000

Photos are made up: 1,000 features of 128 numbers near 400 words each, as HOW's are said to have;
queries see half of a photo's words again. All words are equally frequent: those of real photos are
not, and a query then meets longer lists. Times are of the CPU, all cores together, and medians.
Floors: of finding words, the bare matrix product; of a search, XOR and count of as many bits
in one array.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np
from timing import OwnMemory, status

from dolg_tf.retrieval.asmk import build, lists
from dolg_tf.retrieval.asmk.aggregate import residual_sums
from dolg_tf.retrieval.asmk.lists import Inverted
from dolg_tf.retrieval.asmk.search import Search
from dolg_tf.retrieval.asmk.words import Codebook

WIDTH, FEATURES, WORDS_OF_PHOTO = 128, 1000, 400
MILLION = 1_000_000


def cpu(call, rounds: int):
    """Returns the median CPU seconds of a call, and its last result."""
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        spent.append(time.process_time() - start)
    return float(np.median(spent)), result


def draw_photo(rng, centroids: np.ndarray) -> np.ndarray:
    """Returns the features of a photo, float32 (1000, 128)."""
    words = rng.integers(len(centroids), size=WORDS_OF_PHOTO)
    near = centroids[words[rng.integers(WORDS_OF_PHOTO, size=FEATURES)]]
    return near + 0.5 * rng.standard_normal(near.shape, dtype=np.float32)


def per_photo(book: Codebook, rounds: int) -> None:
    """Prints the lines of what one photo takes before it is added."""
    rng, kernel = np.random.default_rng(0), lists.kernel_of(meta_of(1))
    photo = draw_photo(rng, book.centroids)
    floor, _ = cpu(lambda: [part @ book.centroids.T for part in np.array_split(photo, 2)], rounds)
    line("photo: bare matrix product", floor, "")
    for count in (1, 5):
        seconds, words = cpu(lambda count=count: book.nearest(photo, count), rounds)
        line(f"photo: {count} nearest of {len(book)} words", seconds, f"{seconds / floor:.2f}")
        seconds, found = cpu(
            lambda words=words: residual_sums(photo, words, book.centroids), rounds
        )
        encoding, _ = cpu(lambda found=found: kernel.encode(found[1]), rounds)
        line(f"photo: sums at {len(found[0])} words, and bits", seconds + encoding, "")


def meta_of(photos: int) -> dict:
    about = {"contents": lists.CONTENTS, "variant": "dolg", "regions": False, "binary": True}
    about |= {"idf": False, "assignments": 1, "dimensions": WIDTH, "counted": photos}
    return about | {"format_version": lists.FORMAT_VERSION}


def draw_entries(rng, words: int, photos: int):
    """Returns a function of a photo to its words and bits, and those of the last photos."""
    kept = {}

    def entries(photo: int):
        chosen = np.unique(rng.integers(words, size=WORDS_OF_PHOTO))
        bits = rng.integers(256, size=(len(chosen), WIDTH // 8), dtype=np.uint8)
        kept[photo % 32] = chosen, bits
        return chosen, bits

    return entries, kept


def line(what: str, seconds: float, over: str) -> None:
    print(f"| {what} | {1e3 * seconds:.2f} | {over} |", flush=True)


def build_index(path: pathlib.Path, book: Codebook, photos: int):
    """Builds an index of made-up entries, and prints what a photo takes; returns some of them."""
    entries, kept = draw_entries(np.random.default_rng(photos), len(book), photos)
    kernel, meta = lists.kernel_of(meta_of(photos)), meta_of(photos)
    pieces = build.Pieces(path.with_name("pieces"), photos, kernel)
    pieces.begin(meta)
    drawn = 0.0
    before, watch, start = status("RssAnon"), OwnMemory(0.002), time.process_time()
    for piece in range(pieces.count):
        began = time.process_time()
        found = [entries(photo) for photo in pieces.span(piece)]
        drawn += time.process_time() - began
        pieces.write(piece, found)
    build.write_index(path, [f"{photo:07d}" for photo in range(photos)], pieces, book, meta)
    spent = time.process_time() - start - drawn
    pieces.clear()
    line(f"{photos} photos: a photo added", spent / photos, "")
    size = sum((path / name).stat().st_size for name in ("rows.npy", "codes.npy", "norms.npy"))
    memory = (watch.stop() - before) / 1e6
    print(f"| {photos} photos: {size / photos:.0f} bytes per photo, {memory:.0f} MB memory | | |")
    return list(kept.values())


def queries(path: pathlib.Path, known: list, rounds: int) -> tuple[float, float]:
    """Prints what a query takes; returns seconds per entry that it meets, and per query."""
    index = Inverted.open(path)
    search, rng = Search(index, lists.kernel_of(index.meta)), np.random.default_rng(1)
    spent, met = [], []
    for _ in range(rounds):
        words, bits = known[rng.integers(len(known))]
        other = np.unique(rng.integers(len(index.codebook), size=2000))  # 5 words a feature
        found, first = np.unique(np.concatenate([words, other]), return_index=True)
        noise = rng.integers(256, size=(len(other), WIDTH // 8), dtype=np.uint8)
        codes = np.concatenate([bits, noise])[first]
        seconds, _ = cpu(lambda found=found, codes=codes: search.scores(found, codes), 1)
        spent.append(seconds)
        met.append(int(np.diff(index.offsets)[found].sum()))
    seconds, entries = float(np.median(spent[1:])), float(np.median(met[1:]))
    one, other = (rng.integers(2**63, size=(int(entries), 2)) for _ in range(2))
    floor, _ = cpu(lambda: np.bitwise_count(one ^ other).sum(axis=1), rounds)
    what = f"{len(index)} photos: a query of {len(found)} words, {entries:.0f} entries"
    line(what, seconds, f"{seconds / floor:.1f}" if floor > 1e-4 else "")
    return seconds, entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, default=65536)
    parser.add_argument("--photos", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    book = Codebook(rng.standard_normal((args.words, WIDTH), dtype=np.float32), {})
    print("| what | ms of CPU | over its floor |\n| --- | --- | --- |")
    per_photo(book, args.rounds)
    measured = []
    for photos in args.photos:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "index")
            known = build_index(path, book, photos)
            measured.append((photos, *queries(path, known, 3 * args.rounds)))
    (_, s0, e0), (last, s1, e1) = measured[0], measured[-1]
    if e1 > e0:
        slope = (s1 - s0) / (e1 - e0)
        seconds = s1 + slope * e1 * (MILLION / last - 1)
        line(f"{MILLION} photos, extrapolated: a query", seconds, "")


if __name__ == "__main__":
    main()
