import numpy as np
import pytest
from halves import halves
from hypothesis import given, settings
from hypothesis import strategies as st

from dolg_tf.evaluation.gldv2 import kaggle_csv
from dolg_tf.evaluation.gldv2 import predictions as gldv2_predictions
from dolg_tf.evaluation.gldv2.predictions import PredictionsConfig, predictions, vote
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact import blocks
from dolg_tf.stage.config import InputError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 4 queries, so that few queries are several blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(gldv2_predictions, "BLOCK", 4)


def _write(path, ids, rows, bad=(), **about):
    keys = ("image_root", "model_hash", "scales", "crop", "max_side", "whitening")
    bad = [{"id": id_, "reason": "broken"} for id_ in bad]
    meta = {**dict.fromkeys(keys), "bad": bad, **about}
    descriptors.write(path, DescriptorSet(tuple(ids), np.asarray(rows, np.float32), meta))
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """10 queries, 120 training photos of 7 landmarks, 9 non-landmarks; products are exact."""
    rng = np.random.default_rng(0)
    rows = {name: halves(rng, count, 6) for name, count in (("q", 10), ("i", 120), ("n", 9))}
    labels = rng.integers(0, 7, 120) * 10
    for name, values in rows.items():
        ids = [f"{name}/{name}{row:03d}" for row in range(len(values))]
        _write(tmp_path / name, ids, values, ["q/bad"] if name == "q" else ())
    lines = [f"i{row:03d},http,{label}\n" for row, label in enumerate(labels)]
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n" + "".join(lines))
    return tmp_path, rows, labels


def _settings(folder, task, **options):
    if task == "recognition":
        options = {"train_csv": str(folder / "train.csv"), **options}
    sets = {"query_descriptors": str(folder / "q"), "index_descriptors": str(folder / "i")}
    return PredictionsConfig(task=task, **sets, **options)


def _run(options, wanted=None, output="out"):
    with predictions(options, wanted, output) as found:
        return dict(found)


def _ranked(scores):
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


def test_retrieval_equals_sorting(photos):
    folder, rows, _ = photos
    found = _run(_settings(folder, "retrieval"), None, folder / "out")
    expected = {
        f"q{number:03d}": tuple(f"i{row:03d}" for row in _ranked(rows["i"] @ query)[:100])
        for number, query in enumerate(rows["q"])
    }
    assert found == expected | {"bad": None}


@pytest.mark.parametrize("non_landmarks", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 120])
def test_recognition_equals_the_formula(photos, top_k, non_landmarks):
    """The paper's steps, one query and one training photo at a time."""
    folder, rows, labels = photos
    options = {"top_k": top_k, "non_landmarks_k": 2}
    if non_landmarks:
        options["non_landmarks"] = str(folder / "n")
    found = _run(_settings(folder, "recognition", **options), None, folder / "out")

    def penalty(photo):
        return sum(sorted((rows["n"] @ photo).tolist())[-2:]) / 2 if non_landmarks else 0.0

    assert found.pop("bad") is None and len(found) == len(rows["q"])
    for number, query in enumerate(rows["q"]):
        scores = [float(photo @ query) - penalty(photo) for photo in rows["i"]]
        sums = {}
        for row in _ranked(scores)[:top_k]:
            sums[labels[row]] = sums.get(labels[row], 0.0) + scores[row]
        landmark = min(sums, key=lambda label: (-sums[label], label))
        expected = (str(landmark), sums[landmark] - penalty(query))
        assert found[f"q{number:03d}"] == expected


def test_penalties_change_something(photos):
    folder, _, _ = photos
    plain = _run(_settings(folder, "recognition"), None, folder / "out")
    options = _settings(folder, "recognition", non_landmarks=str(folder / "n"))
    less = _run(options, None, folder / "out")
    assert any(plain[f"q{row:03d}"][0] != less[f"q{row:03d}"][0] for row in range(10))


def test_wanted_queries_in_their_order(photos):
    folder, _, _ = photos
    options = _settings(folder, "retrieval")
    every = _run(options, None, folder / "out")
    wanted = ["q009", "bad", *(f"q{number:03d}" for number in range(6))]
    found = _run(options, wanted, folder / "out")
    assert list(found) == wanted and found["bad"] is None
    assert all(found[query] == every[query] for query in wanted if query != "bad")
    only_bad = _settings(folder, "recognition", non_landmarks=str(folder / "n"))
    assert _run(only_bad, ["bad"], folder / "out") == {"bad": None}


def test_small_index(photos):
    folder, rows, _ = photos
    _write(folder / "i", ["i/i000", "i/i001"], rows["i"][:2])
    wanted = [f"q{row:03d}" for row in range(10)]
    found = _run(_settings(folder, "retrieval"), wanted, folder / "out")
    assert all(sorted(images) == ["i000", "i001"] for images in found.values())
    found = _run(_settings(folder, "recognition"), wanted, folder / "out")
    assert all(found.values())


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3)), min_size=k, max_size=k),
            min_size=1,
            max_size=5,
        )
    )
)
def test_vote_equals_adding_up(drawn):
    scores, labels = np.array(drawn)[:, :, 0] / 4, np.array(drawn, np.int32)[:, :, 1]
    chosen, best = vote(scores.astype(np.float32), labels)
    for query, pairs in enumerate(drawn):
        sums = {label: sum(s for s, other in pairs if other == label) / 4 for _, label in pairs}
        expected = min(sums, key=lambda label: (-sums[label], label))
        assert (chosen[query], best[query]) == (expected, sums[expected])


# --- interruption --------------------------------------------------------------------


def test_an_interrupted_run_goes_on(photos, monkeypatch):
    folder, _, _ = photos
    options = _settings(folder, "recognition", non_landmarks=str(folder / "n"))
    whole = _run(options, None, folder / "other")
    search, calls = blocks.search.search, []

    def stop_after(most):
        def searched(index, queries, k):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(len(queries))
            return search(index, queries, k)

        calls.clear()
        monkeypatch.setattr(blocks.search, "search", searched)

    # 3 blocks of query penalties, 30 of the index, 3 of the search.
    output = folder / "out"
    for most in (0, 2, 17, 16):
        stop_after(most)
        with pytest.raises(KeyboardInterrupt):
            _run(options, None, output)
    assert (folder / "out.parts").is_dir()
    stop_after(36)
    assert _run(options, None, output) == whole
    assert calls == [2]  # the last block alone
    assert not (folder / "out.parts").exists()


def test_another_run_does_not_go_on(photos, monkeypatch):
    folder, rows, _ = photos
    options = _settings(folder, "recognition")
    with pytest.raises(KeyboardInterrupt), predictions(options, None, folder / "out") as found:
        next(found)
        raise KeyboardInterrupt
    for other, wanted in (
        (_settings(folder, "recognition", top_k=2), None),
        (_settings(folder, "retrieval"), None),
        (options, ["q001"]),
    ):
        with pytest.raises(InputError, match=r"out\.parts holds the beginning of another run"):
            _run(other, wanted, folder / "out")
    _write(folder / "q", [f"q/q{row:03d}" for row in range(10)], -rows["q"])
    with pytest.raises(InputError, match="another run"):
        _run(options, None, folder / "out")


def test_mended_photos_do_not_go_on(photos):
    """Their rows are not among the few that are compared, but their file sizes changed."""
    folder, rows, _ = photos
    ids = [f"i/i{row:03d}" for row in range(120)]
    _write(folder / "i", ids, rows["i"], images="sizes before")
    options = _settings(folder, "retrieval")
    with pytest.raises(KeyboardInterrupt), predictions(options, None, folder / "out") as found:
        next(found)
        raise KeyboardInterrupt
    rows["i"][1] *= -1
    _write(folder / "i", ids, rows["i"], images="sizes after")
    with pytest.raises(InputError, match="another run"):
        _run(options, None, folder / "out")


def test_a_damaged_piece_is_named(photos):
    folder, _, _ = photos
    options = _settings(folder, "retrieval")
    with pytest.raises(KeyboardInterrupt), predictions(options, None, folder / "out") as found:
        next(found)
        raise KeyboardInterrupt
    piece = folder / "out.parts" / "retrieval-00000000.npz"
    piece.write_bytes(piece.read_bytes()[:100])
    with pytest.raises(InputError, match=r"retrieval-00000000\.npz is damaged"):
        _run(options, None, folder / "out")


def test_two_at_once(photos):
    folder, _, _ = photos
    options = _settings(folder, "retrieval")
    with predictions(options, None, folder / "out") as found:
        next(found)
        with pytest.raises(InputError, match="another process is writing"):
            _run(options, None, f"{folder}/out/")
        assert len(list(found)) == 10


def test_refuses_options():
    sets = {"query_descriptors": "q", "index_descriptors": "i"}
    with pytest.raises(InputError, match="takes no --train_csv"):
        PredictionsConfig(task="retrieval", **sets, train_csv="x")
    with pytest.raises(InputError, match=r"takes no .*--non_landmarks"):
        PredictionsConfig(task="retrieval", **sets, non_landmarks="x")
    for labels in ({}, {"train_csv": "x", "labels_csv": "y"}):
        with pytest.raises(InputError, match="or else --labels_csv"):
            PredictionsConfig(task="recognition", **sets, **labels)
    with pytest.raises(InputError, match="--top_k=0"):
        PredictionsConfig(task="retrieval", **sets, top_k=0)
    assert set(kaggle_csv.COLUMNS) == {"retrieval", "recognition"}
