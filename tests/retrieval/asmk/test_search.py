"""Scores of an inverted file, against ASMK written down word by word."""

import math

import asmk_images
import numpy as np
import pytest

from dolg_tf.retrieval.asmk import build, lists, search
from dolg_tf.retrieval.asmk.kernel import Kernel
from dolg_tf.retrieval.asmk.words import Codebook, write_codebook
from dolg_tf.stage import checksums
from dolg_tf.stage.config import InputError


def _sums(descriptors, words, count) -> dict[int, list[float]]:
    """Returns the sum of residuals at each word of an image."""
    sums = {}
    for x in descriptors.tolist():
        near = sorted(range(len(words)), key=lambda c: math.dist(x, words[c]))
        for c in near[:count]:
            before = sums.get(c, [0.0] * len(x))
            sums[c] = [s + (a - b) for s, a, b in zip(before, x, words[c], strict=True)]
    return sums


def _similarity(v, w, binary) -> float:
    if binary:
        return 1 - 2 * sum((a > 0) != (b > 0) for a, b in zip(v, w, strict=True)) / len(v)
    lengths = [math.hypot(*one) + 1e-6 for one in (v, w)]
    return sum(a * b for a, b in zip(v, w, strict=True)) / math.prod(lengths)


def _oracle(image, query, weights, binary, alpha, threshold) -> float:
    """Returns the similarity of two images, given their sums."""
    total = 0.0
    for c in image.keys() & query.keys():
        u = _similarity(image[c], query[c], binary)
        if u >= threshold:
            total += weights[c] * math.copysign(abs(u) ** alpha, u)
    norms = [math.sqrt(sum(weights[c] for c in one)) for one in (image, query)]
    return total / math.prod(norms) if all(norms) else 0.0


@pytest.fixture(scope="module")
def world():
    """Words (20, 12), index images and queries; two images have no features."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(20, 12)).astype(np.float32)
    images = [rng.normal(size=(n, 12)).astype(np.float32) for n in [9, 0, 30, 1, 12, 25, 3, 0]]
    return words, images, [images[2][:8] + 0.1, images[4] * 0.9, images[1]]


@pytest.mark.parametrize(
    ("of_index", "of_query"),
    [
        ({}, {}),
        ({"binary": False}, {"threshold": -0.3, "alpha": 1.5}),
        ({"idf": True}, {"alpha": 2.0, "threshold": -1.0}),
        ({"assignments": 3}, {"threshold": 1 / 6}),  # one of the similarities: it counts
    ],
)
def test_scores_are_those_of_the_oracle(tmp_path, monkeypatch, world, of_index, of_query):
    words, images, queries = world
    monkeypatch.setattr(build, "PIECE_BINARY", 3)
    monkeypatch.setattr(build, "PIECE_REAL", 2)
    monkeypatch.setattr(build, "_MERGED", 64)  # a word or two at a time
    monkeypatch.setattr(search, "_ENTRIES", 3)
    index = asmk_images.index_of(tmp_path / "index", images, words, **of_index)
    found = asmk_images.scores_of(index, queries, 2, **of_query)
    stored = [_sums(one, words.tolist(), index.meta["assignments"]) for one in images]
    counts = [sum(c in one for one in stored) for c in range(len(words))]
    weights = [math.log(len(images) / n) ** 2 if n and index.meta["idf"] else 1.0 for n in counts]
    settings = {"alpha": 3.0, "threshold": 0.0} | of_query
    for row, query in zip(found, queries, strict=True):
        sums = _sums(query, words.tolist(), 2)
        expected = [_oracle(one, sums, weights, index.meta["binary"], **settings) for one in stored]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_array_equal(np.diff(index.offsets), counts)
    index.check_lists()


def test_padding_makes_unlike_images_more_alike():
    u = {name: Kernel(name, 40).similarity_of_distances() for name in ("dolg", "how", "delf")}
    assert (u["dolg"][20], u["how"][20], u["delf"][20]) == (0, 0.375, 0)
    u = {name: Kernel(name, 12).similarity_of_distances()[6] for name in ("dolg", "delf")}
    assert u == {"dolg": 0, "delf": 0.25}
    assert Kernel("delf", 6).similarity_of_distances()[6] == -1


def test_delf_leaves_out_the_threshold_itself():
    u = np.array([-0.5, 0.25, 0.5])
    taken = {name: Kernel(name, 8, alpha=1, threshold=0.25).select(u) for name in ("how", "delf")}
    np.testing.assert_array_equal(taken["how"], [0, 0.25, 0.5])
    np.testing.assert_array_equal(taken["delf"], [0, 0, 0.5])


def test_powers_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="give a whole --alpha"):
        Kernel("how", 8, alpha=2.5, threshold=-0.5)


def test_a_killed_build_continues(tmp_path, monkeypatch, world):
    words, images, _ = world
    monkeypatch.setattr(build, "PIECE_BINARY", 2)
    whole = asmk_images.index_of(tmp_path / "whole", images, words)

    class Killed(Exception):
        pass

    aggregate, done = build.entries_of, []

    def killed(*args):
        done.append(args)
        if len(done) == 6:
            raise Killed
        return aggregate(*args)

    monkeypatch.setattr(build, "entries_of", killed)
    with pytest.raises(Killed):
        asmk_images.index_of(tmp_path / "index", images, words)
    assert not (tmp_path / "index").exists()
    with pytest.raises(InputError, match="was begun with other"):
        asmk_images.index_of(tmp_path / "index", images, words, assignments=2)
    index = asmk_images.index_of(tmp_path / "index", images, words)
    assert len(done) == 6 + 4  # the first two pieces, of two images each, were there
    for name in ("offsets", "rows", "codes", "norms"):
        np.testing.assert_array_equal(getattr(index, name), getattr(whole, name))
    assert not (tmp_path / "index.unfinished").exists()


def test_merging_keeps_no_piece_open(tmp_path, monkeypatch):
    """There may be thousands of pieces, but a process often has but 1,024 files."""
    monkeypatch.setattr(build, "PIECE_BINARY", 1)
    pieces, codes = (
        build.Pieces(tmp_path / "pieces", 3, Kernel("dolg", 16)),
        np.ones((200, 2), "u1"),
    )
    pieces.begin({})
    for piece in range(3):
        pieces.write(piece, [(np.arange(200), codes)])
    for parts in (pieces._between(piece, 0, 150) for piece in range(3)):
        assert all(part.base is None and len(part) == 150 for part in parts)


def test_no_image_has_features(tmp_path, world):
    words, _, queries = world
    index = asmk_images.index_of(tmp_path / "index", [words[:0]] * 3, words)
    assert not asmk_images.scores_of(index, queries, 1).any()
    index.check_lists()


@pytest.mark.parametrize("name", ["rows.npy", "codes.npy", "offsets.npy", "norms.npy"])
def test_damage_is_found(tmp_path, world, name):
    words, images, _ = world
    path = tmp_path / "index"
    asmk_images.index_of(path, images, words)
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 64
    (path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        lists.Inverted.open(path).check_lists()


@pytest.mark.parametrize("name", ["offsets.npy", "codebook.npz"])
def test_files_of_another_index_are_refused(tmp_path, world, name):
    words, images, _ = world
    path = tmp_path / "index"
    index = asmk_images.index_of(path, images, words)
    if name == "offsets.npy":
        offsets = np.array(index.offsets)
        offsets[1] = 10**9
        np.save(path / name, offsets)
    else:
        write_codebook(path / name, Codebook(words[:-1], {}))
    meta, sums = checksums.read_json(path / "meta.json", 1, "")
    checksums.write_json(path / "meta.json", meta, sums | checksums.of_files(path, [name]))
    with pytest.raises(InputError, match="its files do not fit each other; build the index again"):
        lists.Inverted.open(path)


def test_lists_are_checked_across_blocks(tmp_path, world, monkeypatch):
    words, images, _ = world
    index = asmk_images.index_of(tmp_path / "index", images, words)
    rows = np.array(index.rows)
    place = int(np.flatnonzero(np.diff(index.offsets) > 1)[0])
    start = int(index.offsets[place])
    rows[start + 1] = rows[start]
    monkeypatch.setattr(lists, "_BLOCK", start + 1)
    damaged = lists.Inverted(**{**vars(index), "rows": rows})
    with pytest.raises(InputError, match="images do not ascend"):
        damaged.check_lists()


def test_an_image_that_is_not_there_is_told(tmp_path, world):
    words, images, queries = world
    index = asmk_images.index_of(tmp_path / "index", images, words)
    rows = np.array(index.rows)
    rows[::5] = len(images)
    damaged = lists.Inverted(**{**vars(index), "rows": rows})
    with pytest.raises(InputError, match="an image that is not there"):
        asmk_images.scores_of(damaged, queries[:1], 3)
