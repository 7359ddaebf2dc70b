"""ASMK against the asmk package and DELF's own code."""

import pathlib

import asmk_images
import numpy as np
import pytest

from dolg_tf.retrieval.asmk import build, learn, lists
from dolg_tf.retrieval.asmk.aggregate import over_regions, residual_sums
from dolg_tf.retrieval.asmk.kernel import Kernel
from dolg_tf.retrieval.asmk.words import Codebook

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden/asmk.npz")
PRESENT = [query for query in range(asmk_images.QUERIES) if query != asmk_images.EMPTY_QUERY]
# What differs from HOW's setting: of the index, of the query.
SETTINGS = {
    "how": ({}, {}),
    "real": ({"binary": False}, {}),
    "single": ({}, {"assignments": 1}),
    "idf": ({"idf": True}, {}),
    "strict": ({}, {"alpha": 1.0, "threshold": 0.25}),
}
DELF = {"asmk": {"binary": False}, "asmk_star": {}}


@pytest.mark.parametrize(
    ("dimensions", "name"),
    [(128, name) for name in SETTINGS] + [(40, "how"), (40, "real")],
)
def test_scores_are_those_of_the_asmk_package(tmp_path, dimensions, name):
    words, (images, queries) = asmk_images.centroids(dimensions), asmk_images.images(dimensions)
    of_index, of_query = SETTINGS[name]
    index = asmk_images.index_of(tmp_path / "index", images, words, variant="how", **of_index)
    found = asmk_images.scores_of(index, queries, **{"assignments": 5, **of_query})
    # There the empty query has no row, and the empty last image no column.
    expected = GOLDEN[f"d{dimensions}/{name}/scores"]
    np.testing.assert_allclose(found[PRESENT, :29], expected, atol=1e-6)
    assert not found[asmk_images.EMPTY_QUERY].any() and not found[:, [11, 29]].any()
    order = np.argsort(-found[PRESENT, :29], axis=1, kind="stable")
    ranked = np.take_along_axis(expected, order, 1)
    apart = np.diff(np.pad(ranked, ((0, 0), (1, 1)), constant_values=(2, -2)), axis=1) < -1e-6
    clear = apart[:, 1:] & apart[:, :-1]
    assert clear.sum() >= 8
    assert (order == GOLDEN[f"d{dimensions}/{name}/ranks"])[clear].all()


@pytest.mark.parametrize("dimensions", [128, 40])
def test_what_is_stored_is_what_the_asmk_package_stores(tmp_path, dimensions):
    words, (images, queries) = asmk_images.centroids(dimensions), asmk_images.images(dimensions)
    book, key = Codebook(words, {}), f"d{dimensions}"
    index = asmk_images.index_of(tmp_path / "index", images, words, variant="how")
    np.testing.assert_allclose(index.norms[:29] ** 2, GOLDEN[f"{key}/how/norm_factor"])
    kernel = lists.kernel_of(index.meta)
    by_image = [build.entries_of([one], book, kernel, 5) for one in queries]
    found = np.concatenate([present for present, _ in by_image])
    np.testing.assert_array_equal(found, GOLDEN[f"{key}/how/query/words"])
    codes = np.concatenate([codes for _, codes in by_image])
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4)))
    packed = np.ascontiguousarray(padded).view(">u4").astype(np.uint32)
    np.testing.assert_array_equal(packed[::4], GOLDEN[f"{key}/how/query/vectors"])


def test_nearest_words_are_those_of_faiss():
    images, queries = asmk_images.images()
    book = Codebook(asmk_images.centroids(), {})
    for some, key in ((images, "descriptors"), (queries, "query_descriptors")):
        expected = GOLDEN[f"d128/words_of_{key}"]
        rows = np.concatenate(some)
        found = book.nearest(rows, 1 if expected.ndim == 1 else 5)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def _delf_images() -> list:
    """Returns five index images, each with four regions, the third of which is empty."""
    images, _ = asmk_images.images()
    chosen = [images[i] for i in (0, 3, 9, 5, 11)]
    return [[one, one[: len(one) // 2], one[:0], one[: len(one) // 3]] for one in chosen]


@pytest.mark.parametrize("assignments", [1, 5])
@pytest.mark.parametrize("name", DELF)
@pytest.mark.parametrize("form", ["plain", "regional"])
def test_scores_are_those_of_delf(tmp_path, form, name, assignments):
    words, (_, queries) = asmk_images.centroids(), asmk_images.images()
    images = _delf_images() if form == "regional" else [one[0] for one in _delf_images()]
    settings = {"variant": "delf", "regions": form == "regional", "assignments": assignments}
    index = asmk_images.index_of(tmp_path / "index", images, words, **settings, **DELF[name])
    found = asmk_images.scores_of(index, queries[:4], assignments)
    np.testing.assert_allclose(found, GOLDEN[f"delf/{name}{assignments}/{form}"], atol=1e-4)


@pytest.mark.parametrize("assignments", [1, 5])
def test_regions_are_aggregated_as_delf_does(assignments):
    book, regions = Codebook(asmk_images.centroids(), {}), _delf_images()[0]
    parts = [(one, book.nearest(one, assignments)) for one in regions]
    sums = [residual_sums(one, near, book.centroids) for one, near in parts]
    words, vlad = over_regions(sums, 128)
    whole = np.zeros((asmk_images.WORDS, 128))
    whole[words] = vlad
    expected = GOLDEN[f"delf/vlad{assignments}/vector"]
    np.testing.assert_allclose(whole[:8, ::8], expected, atol=1e-6)
    for name, settings in DELF.items():
        kernel = Kernel("delf", 128, **settings)
        found, stored = build.entries_of(regions, book, kernel, assignments)
        np.testing.assert_array_equal(found, GOLDEN[f"delf/{name}{assignments}/words"])
        expected = GOLDEN[f"delf/{name}{assignments}/vector"]
        np.testing.assert_allclose(stored.ravel()[:128], expected, atol=1e-6)


def test_k_means_is_as_good_as_that_of_the_asmk_package(tmp_path):
    rows = np.concatenate(asmk_images.images()[0])
    words = learn.k_means(rows, 16, tmp_path / "unfinished.npz", {}).centroids
    distances = ((rows[:, None] - words) ** 2).sum(2).min(1)
    assert distances.sum() == pytest.approx(GOLDEN["kmeans/objective"], rel=0.01)
