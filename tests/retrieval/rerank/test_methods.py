import dataclasses
import importlib.util
import json
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.apps.demo.answers import ranking
from dolg_tf.evaluation.revisited import score
from dolg_tf.retrieval import norms
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.retrieval.rerank import k_reciprocal, superglobal
from dolg_tf.retrieval.rerank.methods import RERANKERS, RerankConfig, apply
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError, from_dict

METHODS = tuple(RERANKERS)
GLOBAL = tuple(name for name, one in RERANKERS.items() if not one.local)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def some(seed, count, size=8):
    return unit(np.random.default_rng(seed).standard_normal((count, size)) + 1)


def ranks(reranked):
    """All rows, best first, as `Reranked` says."""
    scores = np.asarray(reranked.queries) @ np.asarray(reranked.index).T
    order = np.argsort(-scores, axis=1, kind="stable")
    if reranked.head is None:
        return order
    rest = [row[~np.isin(row, head)] for row, head in zip(order, reranked.head, strict=True)]
    return np.concatenate([reranked.head, rest], axis=1)


# --- the authors' own code -----------------------------------------------------------


@pytest.fixture
def golden(ground_truths):
    folder = ground_truths
    spec = importlib.util.spec_from_file_location("features", folder / "features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with (folder / "gnd_roxford5k.pkl").open("rb") as file:
        queries, index = module.features(pickle.load(file), 0)
    task = load_ground_truth(folder / "gnd_roxford5k.pkl")
    scores = json.loads((folder / "rerank_roxford5k_seed0.json").read_text())
    return queries, index, task, scores, np.load(folder / "rerank_roxford5k_seed0.npz")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("baseline", {}),
        ("superglobal_rerank_M400_K9_beta0.15", {"rerank": "superglobal"}),
        ("alpha_qe_k10_alpha3", {"rerank": "alpha_qe", "rerank_k": 10}),
        ("alpha_dba_k10_alpha3", {"rerank": "alpha_dba"}),
    ],
)
def test_equals_the_published_code(golden, name, flags):
    queries, index, task, scores, arrays = golden
    found = apply(RerankConfig(**flags), queries, Rows([index]))
    report = score.score_descriptors(task, queries, Rows([index]), RerankConfig(**flags))
    for level, value in scores[name].items():
        assert report[level].mAP == pytest.approx(value, abs=1e-9), level
    if name.startswith("superglobal"):
        np.testing.assert_array_equal(found.head, arrays["superglobal_top400"].T)
    if name.startswith("alpha_qe"):
        np.testing.assert_allclose(found.queries, arrays["alpha_qe_queries"], atol=1e-6)


# --- apply ---------------------------------------------------------------------------


def test_none_changes_nothing():
    queries, index = some(0, 3), np.zeros((5, 8), np.float32)
    found = apply(RerankConfig(), queries, index)
    assert found.queries is queries and found.index is index and found.head is None


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_heads_are_the_best_photos_reordered(monkeypatch, block):
    monkeypatch.setattr(search, "_QUERIES", block)
    queries, index = some(0, 9), some(1, 40)
    best = np.argsort(-(queries @ index.T), axis=1, kind="stable")[:, :12]
    numbers = {"rerank_m": 12, "rerank_k": 4, "rerank_beta": 0.2}
    for method, reorder in {
        "superglobal": lambda q, x: superglobal.reorder(q, x, 4, 0.2),
        "k_reciprocal": lambda q, x: k_reciprocal.reorder(q, x, 4, 6, 0.2),
    }.items():
        parts = Rows([index[:7].astype(np.float64), index[7:]])
        found = apply(RerankConfig(rerank=method, **numbers), queries, parts)
        expected = [reorder(q, index[rows]) for q, rows in zip(queries, best, strict=True)]
        rows = [rows[places] for rows, (places, _) in zip(best, expected, strict=True)]
        np.testing.assert_array_equal(found.head, rows)
        np.testing.assert_allclose(found.scores, [scores for _, scores in expected], atol=1e-6)
        assert (np.diff(found.scores) <= 0).all()
        assert found.head.dtype == np.int64
        np.testing.assert_array_equal(found.queries, queries)
        assert found.index is parts


@pytest.mark.parametrize("method", GLOBAL)
@settings(deadline=None, max_examples=15)
@given(
    seed=strategies.integers(0, 1000),
    count=strategies.integers(1, 12),
    copies=strategies.integers(1, 3),
    queries=strategies.integers(1, 3),
)
def test_few_photos_and_duplicates(method, seed, count, copies, queries):
    index = np.repeat(some(seed, count), copies, 0)
    found = apply(RerankConfig(rerank=method), some(seed + 1, queries), index)
    for row in ranks(found):
        assert sorted(row) == list(range(len(index)))
    for rows in (found.queries, found.index):
        np.testing.assert_allclose(np.linalg.norm(np.asarray(rows), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("method", GLOBAL)
def test_what_has_no_direction_is_refused(method, monkeypatch):
    monkeypatch.setattr(norms, "_BLOCK", 3)
    index, config = some(0, 8), RerankConfig(rerank=method)
    wrongs = [(0, r"\(norms from 0 to 1.*first is row 7"), (1, r"\(norms from 1 to 2.828")]
    for value, told in [*wrongs, (np.nan, "row 7 is not finite")]:
        wrong = index.copy()
        wrong[7] = value
        with pytest.raises(InputError, match=f"the index: .*{told}"):
            apply(config, index, wrong)
        with pytest.raises(InputError, match=f"the queries: .*{told}"):
            apply(config, wrong, index)
    with pytest.raises(InputError, match="no descriptors"):
        apply(config, index, index[:0])
    apply(config, index, index.astype(np.float16))


# --- flags ---------------------------------------------------------------------------


def test_numbers_are_the_published_ones_unless_given():
    assert RerankConfig().numbers() == {}
    assert RerankConfig(rerank="superglobal").numbers() == {"m": 400, "k": 9, "beta": 0.15}
    assert RerankConfig(rerank="alpha_qe").numbers() == {"k": 50, "alpha": 3.0}
    assert RerankConfig(rerank="k_reciprocal").numbers() == {"m": 400, "k": 20, "beta": 0.3}
    assert RerankConfig(rerank="alpha_dba", rerank_alpha=0.0).numbers() == {"k": 10, "alpha": 0.0}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rerank_k": 3}, r"--rerank_k=3 does not belong to --rerank=none, which takes no numbers"),
        ({"rerank": "alpha_qe", "rerank_m": 9}, "takes --rerank_k and --rerank_alpha"),
        ({"rerank": "superglobal", "rerank_alpha": 1.0}, "--rerank_alpha=1.0 does not belong"),
        ({"rerank": "alpha_dba", "rerank_beta": 0.1}, "--rerank_beta=0.1 does not belong"),
        ({"rerank": "superglobal", "rerank_k": 0}, "--rerank_k=0 must be at least 1"),
        ({"rerank": "superglobal", "rerank_m": -2}, "--rerank_m=-2 must be at least 1"),
        ({"rerank": "superglobal", "rerank_beta": -0.1}, "--rerank_beta=-0.1 must be at least 0"),
        ({"rerank": "k_reciprocal", "rerank_beta": 1.5}, "at least 0 and at most 1"),
        ({"rerank": "alpha_qe", "rerank_alpha": np.nan}, "--rerank_alpha=nan must be"),
        ({"rerank": "alpha_qe", "rerank_alpha": np.inf}, "--rerank_alpha=inf must be"),
        ({"rerank": "magic"}, "'magic' is none of none, alpha_qe"),
        ({"rerank": "none,geometric"}, "'none' is none of"),
        ({"rerank": "geometric,alpha_qe"}, "alpha_qe cannot follow geometric"),
        ({"rerank": "superglobal,k_reciprocal"}, "k_reciprocal cannot follow superglobal"),
        ({"rerank": "alpha_qe,alpha_qe"}, "names a method twice"),
        ({"rerank": "alpha_qe,superglobal", "rerank_k": 3}, "could be of alpha_qe or superglobal"),
        ({"rerank": "superglobal", "rerank_order": "sum"}, "does not belong to --rerank=super"),
        ({"rerank": "geometric", "rerank_weight": 0.1}, "take --rerank_order=sum"),
        ({"rerank": "geometric", "rerank_verify": 0}, "--rerank_verify=0 must be at least 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values, told):
    with pytest.raises(InputError, match=told):
        RerankConfig(**values)


def test_methods_in_turn_have_their_own_numbers():
    chain = RerankConfig(rerank="alpha_qe,superglobal,geometric", rerank_alpha=2.0, rerank_m=50)
    assert chain.report() == {
        **{"method": "alpha_qe,superglobal,geometric", "order": "delg", "alpha": 2.0, "m": 50},
        **{"alpha_qe_k": 50, "superglobal_k": 9, "beta": 0.15, "verify": 100},
    }
    assert chain.local and not RerankConfig(rerank="alpha_dba,alpha_qe").local


def test_methods_in_turn_are_one_after_the_other():
    queries, index = some(0, 4), some(1, 30)
    found = apply(RerankConfig(rerank="alpha_dba,superglobal", rerank_m=9), queries, index)
    augmented = apply(RerankConfig(rerank="alpha_dba"), queries, index).index
    expected = apply(RerankConfig(rerank="superglobal", rerank_m=9), queries, augmented)
    np.testing.assert_array_equal(found.head, expected.head)


def test_a_local_method_needs_local_features():
    with pytest.raises(InputError, match="--rerank=geometric needs the local features"):
        apply(RerankConfig(rerank="geometric"), some(0, 1), some(1, 3))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_in_the_flags_the_demo_and_the_docs(name):
    method = RERANKERS[name]
    flags = {field.name: field.metadata for field in dataclasses.fields(RerankConfig)}
    assert f"{name}: {method.words}" in flags["rerank"]["help"]
    for number, one in method.numbers.items():
        told = flags[f"rerank_{number}"]["help"]
        assert name in told and f"{one.words} (default {one.default:g})" in told
        flag = {f"rerank_{number}": type(one.default)(1), "rerank_order": one.order or "auto"}
        given = RerankConfig(rerank=name, **flag).numbers()
        assert given == {
            x: 1 if x == number else y.default
            for x, y in method.numbers.items()
            if y.order in ("", one.order)
        }
    assert (name in ranking.RERANKINGS) == method.quick
    docs = pathlib.Path(__file__).parents[3] / "docs/evaluation.md"
    assert f"| `{name}` |" in docs.read_text(encoding="utf-8")


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="'magic' is none of"):
        from_dict(RerankConfig, {"rerank": "magic"}, "test")
