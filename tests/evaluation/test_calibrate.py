import itertools
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolg_tf.evaluation import calibrate
from dolg_tf.evaluation.calibrate import CalibrateConfig
from dolg_tf.evaluation.labelled_pairs import Block
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.stage.config import InputError

few = settings(max_examples=60, deadline=None)
# A pair: query, score (many ties), same place or not.
pair = st.tuples(st.integers(0, 4), st.integers(-4, 4).map(lambda x: x / 4), st.booleans())
some_pairs = st.lists(pair, max_size=25)


def _blocks(listed, size=4):
    """The pairs as `labelled_pairs` gives them."""
    columns = list(zip(*listed, strict=True)) or [(), (), ()]
    arrays = [
        np.array(column, kind)
        for column, kind in zip(columns, (np.int64, np.float32, bool), strict=True)
    ]

    def pairs():
        for start in range(0, len(listed), size):
            yield Block(*(array[start : start + size] for array in arrays))

    return pairs


def _let_in(listed, threshold):
    """(same, different) among the pairs that reach a threshold."""
    same = sum(same and score >= threshold for _, score, same in listed)
    return same, sum(score >= threshold for _, score, _ in listed) - same


def _kinds(listed):
    return _let_in(listed, -math.inf)


# --- the threshold -------------------------------------------------------------------


@few
@given(some_pairs, st.integers(1, 30))
def test_counts_equal_looking_at_every_pair(listed, size):
    same, different = _kinds(listed)
    if not same or not different:
        with pytest.raises(InputError, match=f"{same} pairs show the same place, {different} do"):
            calibrate.count(_blocks(listed, size))
        return
    found = calibrate.count(_blocks(listed, size))
    scores = sorted({score for _, score, same in listed if same})
    assert found.thresholds.tolist() == pytest.approx(scores, abs=1e-5)
    expected = [_let_in(listed, threshold) for threshold in found.thresholds]
    assert list(zip(found.same, found.different, strict=True)) == expected
    # The pair that a threshold belongs to passes it.
    assert all(found.thresholds < scores)
    assert (found.all_same, found.all_different) == (same, different)


@few
@given(some_pairs.filter(lambda listed: 0 < _kinds(listed)[0] < len(listed)), st.integers(1, 20))
def test_no_threshold_with_the_precision_has_a_higher_recall(listed, twentieths):
    wanted = twentieths / 20
    every = {score + step for _, score, _ in listed for step in (-1e-5, 0, 1e-5)}
    counts = {threshold: _let_in(listed, threshold) for threshold in every}
    reached = {t: same / (same + other) for t, (same, other) in counts.items() if same + other}
    if max(reached.values()) < wanted:
        best = f"no threshold reaches .* the best is {max(reached.values()):.4f}"
        with pytest.raises(InputError, match=best):
            calibrate.fit(_blocks(listed), wanted)
        return
    fitted = calibrate.fit(_blocks(listed), wanted)
    same, different = _let_in(listed, fitted["threshold"])
    all_same, all_different = _kinds(listed)
    assert fitted["precision"] == same / (same + different) >= wanted
    assert fitted["recall"] == same / all_same
    assert fitted["false_positive_rate"] == different / all_different
    assert same == max(counts[t][0] for t, value in reached.items() if value >= wanted)
    assert fitted["pairs"] == {"same": all_same, "different": all_different}
    assert fitted["prior"] == all_same / len(listed)
    for threshold, precision, recall in fitted["curve"]:
        same, different = _let_in(listed, threshold)
        assert (precision, recall) == (same / (same + different), same / all_same)
    json.dumps(fitted, allow_nan=False)


def test_a_long_curve_is_thinned_out():
    listed = [(0, step / 1000, True) for step in range(1000)] + [(0, 0.5, False)]
    curve = calibrate.fit(_blocks(listed, 100), 0.5)["curve"]
    assert len(curve) == 200
    assert [curve[0][0], curve[-1][0]] == pytest.approx([0, 0.999], abs=1e-5)
    assert curve == sorted(curve)


# --- another prior -------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3, 100])
def test_precision_where_other_pairs_are_more(times):
    """Calibrated on few pairs, tested on as many others of the same kind."""
    rng = np.random.default_rng(0)
    same = [(0, score, True) for score in rng.integers(0, 9, 20) / 8]
    different = [(0, score, False) for score in rng.integers(-8, 6, 30) / 8]
    fitted = calibrate.fit(_blocks(same + different), 0.8)
    assert fitted["false_positive_rate"] > 0 and fitted["recall"] < 1
    good, bad = _let_in(same + times * different, fitted["threshold"])
    found = calibrate.precision_at_prior(fitted, 20 / (20 + times * 30))
    assert found == pytest.approx(good / (good + bad), rel=1e-12)
    assert times > 1 or found == pytest.approx(fitted["precision"], rel=1e-12)


# --- intervals -----------------------------------------------------------------------


@few
@given(some_pairs.filter(lambda listed: 0 < _kinds(listed)[0] < len(listed)), st.integers(0, 9))
def test_intervals_hold_what_was_found(listed, seed):
    fitted = calibrate.fit(_blocks(listed), 0.05, seed)
    for name in ("precision", "recall"):
        low, high = fitted[f"{name}_interval"]
        assert 0 <= low <= fitted[name] <= high <= 1
    assert fitted == calibrate.fit(_blocks(listed, 7), 0.05, seed)


@pytest.mark.parametrize(
    ("good", "passed", "interval"),
    [
        (81, 263, [0.2553, 0.3662]),
        (15, 148, [0.0624, 0.1605]),
        (1, 29, [0.0061, 0.1718]),
    ],
)
def test_intervals_of_one_query_are_published_ones(good, passed, interval):
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I."""
    let_in = [(3, 0.5, True)] * good + [(3, 0.5, False)] * (passed - good)
    # In float32 the threshold of the pairs above equals the score of this one, which must not pass.
    below = float(np.float32(0.5 - 1e-6))
    assert below < 0.5 - 1e-6 < np.nextafter(np.float32(below), np.float32(1))
    fitted = calibrate.fit(_blocks([*let_in, *[(3, below, False)] * 100]), 0.01)
    assert fitted["precision"] == good / passed
    assert fitted["precision_interval"] == pytest.approx(interval, abs=5e-5)


def test_pairs_of_one_query_are_alike():
    """40 queries whose 25 pairs are all right or all wrong say no more than 40 pairs."""
    right = [number % 2 == 0 for number in range(40)]
    one_each = calibrate.fit(_blocks([(n, 1.0, same) for n, same in enumerate(right)]), 0.5)
    many = [(n, 1.0, same) for n, same in enumerate(right) for _ in range(25)]
    clustered = calibrate.fit(_blocks(many, 333), 0.5)
    apart = calibrate.fit(_blocks([(n, *rest) for n, (_, *rest) in enumerate(many)], 333), 0.5)
    widths = [np.ptp(fitted["precision_interval"]) for fitted in (one_each, clustered, apart)]
    assert widths[1] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), rel=0.1)
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert widths[2] < widths[1] / 4


# --- descriptors ---------------------------------------------------------------------

QUERIES, PHOTOS = 12, 300
META = {
    "image_root": "photos",
    "model_hash": "m",
    "scales": [1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "bad": [],
}


def _write(path, ids, rows, **changes):
    meta = {**META, **changes}
    descriptors.write(path, DescriptorSet(tuple(ids), np.asarray(rows, np.float32), meta))


@pytest.fixture
def files(tmp_path):
    """Queries and index photos of 10 landmarks, and the same labels in three forms."""
    rng = np.random.default_rng(1)
    labels = np.arange(QUERIES + PHOTOS) % 10
    rows = rng.standard_normal((10, 16))[labels] + 0.7 * rng.standard_normal((len(labels), 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[QUERIES + 1] = rows[0]  # two landmarks that look the same: no threshold is always right
    ids = [f"q/{row}" for row in range(QUERIES)] + [f"i/{row}" for row in range(PHOTOS)]
    _write(tmp_path / "q", ids[:QUERIES], rows[:QUERIES])
    _write(tmp_path / "i", ids[QUERIES:], rows[QUERIES:])
    lines = [f"{id_}.jpg,{label}\n" for id_, label in zip(ids, labels, strict=True)]
    (tmp_path / "labels.csv").write_text("path,landmark\n" + "".join(lines))
    same = labels[:QUERIES, None] == labels[None, QUERIES:]
    lines = [f"q/{a},i/{b},{int(same[a, b])}\n" for a, b in np.ndindex(same.shape)]
    (tmp_path / "pairs.csv").write_text("id_a,id_b,same\n" + "".join(lines))
    gnd = [
        {"bbx": [0, 0, 1, 1], "easy": np.flatnonzero(row).tolist(), "hard": [], "junk": []}
        for row in same
    ]
    task = {"imlist": ids[QUERIES:], "qimlist": ids[:QUERIES], "gnd": gnd}
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(task))
    return tmp_path


def _config(folder, **changes):
    options = {
        "index_descriptors": "i",
        "query_descriptors": "q",
        "labels_csv": "labels.csv",
        "output": "calibration.json",
        **changes,
    }
    paths = ("precision",)
    return CalibrateConfig(
        **{
            name: value if name in paths or not value else str(folder / value)
            for name, value in options.items()
        }
    )


def _index(folder, kind="flat"):
    """Builds an index whose searches look into all of its cells."""
    built = str(folder / "index")
    source = str(folder / "i")
    stages.build(
        stages.BuildConfig(
            descriptors=source, output=built, kind=kind, nlist=4, nprobe=4, overwrite=True
        )
    )
    return Index.open(built)


def _searched(folder, opened):
    """The pairs of all queries and index photos, with the scores that a search gives."""
    queries = descriptors.read(folder / "q")
    scores, ranks = opened.search(np.asarray(queries.descriptors), PHOTOS)
    return [
        (query, score, (int(opened.ids[row][2:]) + QUERIES) % 10 == query % 10)
        for query in range(QUERIES)
        for score, row in zip(scores[query].tolist(), ranks[query], strict=True)
    ]


def test_three_ways_to_say_the_same(files):
    ways = [
        {"labels_csv": "labels.csv"},
        {"labels_csv": "", "pairs": "pairs.csv"},
        {"labels_csv": "", "ground_truth": "gnd_x.pkl"},
    ]
    found = [calibrate.calibrate(_config(files, **way)) for way in ways]
    assert found[2] == json.loads((files / "calibration.json").read_text())
    sources = [fitted.pop("source") for fitted in found]
    assert sources == [str(files / name) for name in ("labels.csv", "pairs.csv", "gnd_x.pkl")]
    assert found[0]["recall"] < 1 and found[0]["false_positive_rate"] > 0
    # The scores of pairs are exact, those of a matrix product are rounded.
    about = {"threshold": pytest.approx(found[1]["threshold"], abs=3e-7)}
    about["curve"] = [pytest.approx(point, abs=3e-7) for point in found[1]["curve"]]
    assert found[0] == found[1] | about and found[2] == found[1] | about
    made = [found[0][key] for key in ("format_version", "model_hash", "scales", "whitening")]
    assert made == [1, "m", [1.0], None]


@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
def test_an_index_answers_as_promised(files, kind, caplog):
    """It is fitted on the approximate index's own scores, which differ from the descriptors'."""
    caplog.set_level("INFO")
    _index(files, kind)
    fitted = calibrate.calibrate(_config(files, index="index"))
    opened = Index.open(files / "index")
    assert opened.threshold == fitted["threshold"]
    same, different = _let_in(_searched(files, opened), opened.threshold)
    assert fitted["recall"] == same / fitted["pairs"]["same"] < 1
    assert fitted["false_positive_rate"] == different / fitted["pairs"]["different"] > 0
    kept = opened.meta["calibration"]
    assert {"precision", "recall", "prior", "pairs"} < set(kept)
    assert all(fitted[name] == value for name, value in kept.items())
    assert f"precision {100 * fitted['precision']:.2f} %" in caplog.text
    assert "index: the threshold is stored" in caplog.text


def test_one_set_of_an_approximate_index(files):
    """Each pair counts once, with the photo that comes first in the set as its query."""
    opened = _index(files, "ivfpq")
    fitted = calibrate.calibrate(_config(files, index="index", query_descriptors=""))
    assert fitted["pairs"] == {"same": 10 * 30 * 29 // 2, "different": 300 * 270 // 2}
    rows = descriptors.read(files / "i")
    scores, ranks = opened.search(np.asarray(rows.descriptors), PHOTOS)
    found = 0
    for id_, its_scores, its_ranks in zip(rows.ids, scores, ranks, strict=True):
        for score, row in zip(its_scores.tolist(), its_ranks, strict=True):
            other = opened.ids[row]
            once = int(id_[2:]) < int(other[2:])
            found += score >= fitted["threshold"] and once and other[-1] == id_[-1]
    assert fitted["recall"] == found / fitted["pairs"]["same"] < 1


# --- refusals ------------------------------------------------------------------------


def _refused(folder, message, **changes):
    before = (folder / "index" / "meta.json").read_text()
    with pytest.raises(InputError, match=message):
        calibrate.calibrate(_config(folder, index="index", **changes))
    assert not (folder / "calibration.json").exists()
    assert (folder / "index" / "meta.json").read_text() == before


def test_nothing_is_written(files):
    _index(files)
    _refused(
        files, r"labels\.csv: no threshold reaches a precision of 1 .*--precision", precision=1.0
    )
    for name, made in (("model_hash", "other"), ("scales", [2.0]), ("whitening", "pca")):
        _write(files / "other", ["q/0"], np.eye(1, 16), **{name: made})
        _refused(files, rf"other has {name} .*extract all", query_descriptors="other")
        # Queries and index descriptors fit together, but not with the index that is searched.
        one = {"query_descriptors": "", "index_descriptors": "other"}
        _refused(files, rf"other has {name} .*index has", **one)
    _write(files / "other", ["q/0"], np.eye(1, 9))
    _refused(files, "other has width 9, .*i has 16", query_descriptors="other")
    _write(files / "other", [], np.ones((0, 16)))
    _refused(files, "other has no descriptors", query_descriptors="other")
    _write(files / "other", ["q/0", "q/1"], np.eye(2, 16))
    for way in ("pairs.csv", "gnd_x.pkl"):
        option = {"pairs.csv": "pairs", "gnd_x.pkl": "ground_truth"}[way]
        changes = {"labels_csv": "", option: way, "query_descriptors": "other"}
        _refused(files, r"'q/2'", **changes)
    (files / "labels.csv").write_text("path,landmark\nq/0,0\ni/0,1\n")
    _refused(files, r"labels\.csv: 0 pairs show the same place, 1 do not")
    _refused(files, "no such descriptor set", query_descriptors="none")


@pytest.mark.parametrize("changed", ["kind", "model_hash"])
def test_the_index_is_another_by_the_time(files, monkeypatch, changed):
    """While a threshold is fitted, another process builds or rebuilds the index."""
    _index(files)
    fit = calibrate.fit

    def slow_fit(*arguments):
        fitted = fit(*arguments)
        rows = np.asarray(descriptors.read(files / "i").descriptors)
        if changed == "model_hash":
            _write(files / "i", [f"i/{row}" for row in range(PHOTOS)], rows, model_hash="new")
        _index(files, "ivfpq" if changed == "kind" else "flat")
        return fitted

    monkeypatch.setattr(calibrate, "fit", slow_fit)
    with pytest.raises(InputError, match=rf"index has {changed} .*changed meanwhile; calibrate"):
        calibrate.calibrate(_config(files, index="index"))
    assert Index.open(files / "index").threshold is None


def test_the_output_is_no_folder(files):
    (files / "calibration.json" / "photos").mkdir(parents=True)
    with pytest.raises(InputError, match="is a directory"):
        calibrate.calibrate(_config(files))
    assert (files / "calibration.json" / "photos").is_dir()


def test_options():
    sets = {"index_descriptors": "i", "output": "o"}
    names = ("pairs", "ground_truth", "labels_csv")
    for several in ((), *itertools.combinations(names, 2), names):
        with pytest.raises(InputError, match=r"give one of --pairs, .* and --labels_csv"):
            CalibrateConfig(**sets, **dict.fromkeys(several, "x"))
    for precision in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"--precision=.* above 0 and at most 1"):
            CalibrateConfig(**sets, labels_csv="x", precision=precision)


def test_command_line(files):
    command = [
        sys.executable,
        "-m",
        "dolg_tf",
        "calibrate",
        f"--labels_csv={files}/labels.csv",
    ]
    command += [f"--index_descriptors={files}/i", f"--output={files}/calibration.json"]

    def run(*options):
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    wrong = run("--precision=0.9", f"--index={files}/none")
    assert wrong.returncode == 1 and "error:" in wrong.stderr and "no index" in wrong.stderr
    assert not (files / "calibration.json").exists()
    done = run("--precision=0.9")
    assert done.returncode == 0 and "; at one in " in done.stderr
    assert json.loads((files / "calibration.json").read_text())["precision"] >= 0.9
