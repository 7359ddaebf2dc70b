import dataclasses
import json
import logging
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import stand_in_saved_model as stand_in
from local_sets import LOCAL_META
from PIL import Image

from dolg_tf.apps.report import run_files
from dolg_tf.apps.report.page import Heading, Note, Picture
from dolg_tf.apps.report.run_files import ReportConfig
from dolg_tf.apps.report.sections import REPORT_SECTIONS, make_section
from dolg_tf.apps.report.write import write_report
from dolg_tf.evaluation.revisited import score
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.ground_truth import Query
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.stages import BuildConfig, build
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

EVIL = '<script src="http://x.example/a.js">alert(1)</script>" onload="x'
HASH = "0123456789abcdef" * 4
SAW, MATCHES = "What a descriptor saw", "Why do these match?"
QUERIES, INDEX = [f"test/q{i}" for i in range(4)], [f"index/p{i}" for i in range(16)]


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _set(path, ids, rows, root, crop=False):
    meta = dict.fromkeys(("max_side", "whitening")) | {"bad": [], "crop": crop}
    meta |= {"image_root": str(root), "model_hash": HASH, "scales": [1.0]}
    descriptors.write(path, descriptors.DescriptorSet(tuple(ids), rows, meta))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder as the quickstart leaves it, small."""
    run = tmp_path_factory.mktemp("runs") / "quickstart"
    rng = np.random.default_rng(0)
    root = run / "photos"
    for id_ in (*QUERIES, *INDEX):
        path = root / f"{id_}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(path)
    landmarks = _unit(rng.normal(size=(4, 12)))
    described = run / "descriptors" / "trained" / HASH[:12]
    noisy = landmarks.repeat(4, axis=0) + rng.normal(size=(16, 12)) * 0.2
    _set(described / "index", INDEX, _unit(noisy), root)
    for split, own in (("seen", [0, 1, 2]), ("unseen", [3])):
        gnd = [
            {"bbx": [0, 0, 16, 24], "easy": [4 * i, 4 * i + 1], "hard": [4 * i + 2], "junk": []}
            for i in own
        ]
        truth = {"imlist": INDEX, "qimlist": [QUERIES[i] for i in own], "gnd": gnd}
        (root / f"gnd_{split}.pkl").write_bytes(pickle.dumps(truth))
        rows = _unit(landmarks[own] + rng.normal(size=(len(own), 12)) * 0.3)
        _set(described / split, truth["qimlist"], rows, root, crop=True)
        config = score.RevisitedConfig(
            ground_truth=str(root / f"gnd_{split}.pkl"),
            query_descriptors=str(described / split),
            index_descriptors=str(described / "index"),
            output=str(run / "scores" / f"trained_{split}.json"),
        )
        score.evaluate(config)
    (run / "train").mkdir()
    rows = [{"step": s, "split": "train", "name": "loss", "value": 9.0 - s} for s in (1, 2, 3)]
    rows.append({"step": 1, "split": "train", "name": EVIL, "value": 1.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "train" / "metrics.jsonl").write_text(text)
    recipe = {"format_version": 2, "model": {"backbone": EVIL}, "training": {"seed": 7}}
    files.write_json(run / "train" / "config.json", recipe)
    stand_in.save(run / "saved_model" / "trained")
    about = {"format_version": 1, "weights_sha256": HASH, "scales": [1.0]}
    files.write_json(run / "saved_model" / "trained" / "assets.extra" / "dolg.json", about)
    return run


def _text(page):
    return re.sub(r"\s+", " ", " ".join(page.text))


@pytest.fixture(scope="module")
def whole(quickstart, tmp_path_factory):
    """The page of the whole folder, with distractors and an index."""
    folder = tmp_path_factory.mktemp("out")
    rng = np.random.default_rng(1)
    _set(folder / "others", [f"o{i}" for i in range(30)], _unit(rng.normal(size=(30, 12))), folder)
    described = quickstart / "descriptors" / "trained" / HASH[:12]
    build(BuildConfig(descriptors=str(described / "index"), output=str(folder / "index")))
    meta = directory.read_meta(folder / "index")
    directory.set_calibration(folder / "index", {"threshold": 0.5}, meta)
    settings = ReportConfig(
        run=str(quickstart),
        output=str(folder / "report"),
        distractor_descriptors=str(folder / "others"),
        index=str(folder / "index"),
    )
    return write_report(settings)


def test_a_quickstart_is_shown_whole(whole, check_self_contained):
    page = check_self_contained(whole.read_text())
    text = _text(page)
    assert EVIL in text and text.count("Not shown") == 1
    assert f"Of one value throughout metric value {EVIL} train 1" in text
    titles = [part for part in page.text if part in REPORT_SECTIONS]
    assert titles == [*REPORT_SECTIONS] * 2 and len(page.all("section")) == len(REPORT_SECTIONS)
    assert "Not shown: a mistaken pair: each query of unseen landmarks finds" in text
    names = {path.stem for path in whole.parent.glob("*.png")}
    tasks = ("seen_landmarks", "unseen_landmarks")
    kinds = ("queries", "best", "precision_recall", "similarities", "distractors", "map")
    expected = {f"{kind}_{task}" for kind in kinds for task in tasks} | {"scores", "training_loss"}
    expected |= {f"match_right_{task}" for task in tasks} | {"match_mistaken_seen_landmarks"}
    expected |= {"worst_seen_landmarks", "saw_unseen_landmarks_1"}
    expected |= {f"saw_seen_landmarks_{number}" for number in (1, 2, 3)}
    # Unseen landmarks are found without a mistake, whatever the recall, and no distractor intrudes.
    expected -= {"precision_recall_unseen_landmarks", "distractors_unseen_landmarks"}
    assert expected == names
    assert "Unseen landmarks: precision is the same at each recall: easy 100.0 %" in text
    assert "Unseen landmarks: mAP stays the same among up to 30 distractors: easy 100.0 %" in text
    lists = sum(name.startswith(("best", "worst")) for name in names)
    in_lists = sum(image["alt"].startswith("rank ") for image in page.all("img"))
    queries = len(page.all("ol"))
    assert queries == 4 and in_lists == 10 * queries
    assert len(page.all("img")) == len(names) - lists + in_lists + queries
    alts = " ".join(image["alt"] for image in page.all("img"))
    assert "30 distractors" in alts and "the threshold 0.500 is reached by" in alts
    assert "train from 8 to 6 at step 3" in alts


def test_the_numbers_are_those_of_the_scores(whole, quickstart, check_self_contained):
    page = check_self_contained(whole.read_text())
    scores = json.loads((quickstart / "scores" / "trained_seen.json").read_text())
    level = scores["medium"]
    low, high = level["mAP_interval"]
    cell = f"{100 * level['mAP']:.1f} ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
    assert cell in page.text
    best = f"best {100 * max(level['AP']):.1f} %"
    assert any(best in image["alt"] for image in page.all("img"))


def test_what_is_missing_is_named(quickstart, tmp_path, caplog, check_self_contained):
    caplog.set_level(logging.INFO)
    settings = ReportConfig(
        output=str(tmp_path / "report"), scores=str(quickstart / "scores" / "trained_seen.json")
    )
    text = _text(check_self_contained(write_report(settings).read_text()))
    for flag in ("--run", "--ground_truth", "--query_descriptors", "--index_descriptors"):
        assert flag in text and flag in caplog.text
    assert "Training: not shown: " in caplog.text and "Similarities: not shown: " in caplog.text
    assert (tmp_path / "report" / "queries_trained_seen.png").exists()


def test_a_training_alone(quickstart, tmp_path, caplog, check_self_contained):
    settings = ReportConfig(run=str(quickstart / "train"), output=str(tmp_path / "report"))
    text = _text(check_self_contained(write_report(settings).read_text()))
    assert "The recipe" in text and "scores, curves, rankings: " in text
    assert caplog.text.count("not shown") == 1
    assert (tmp_path / "report" / "training_loss.png").exists()


def test_descriptors_without_scores_photos_or_model(
    quickstart, tmp_path, caplog, check_self_contained
):
    """What an evaluation by hand has; the photos are gone."""
    described = quickstart / "descriptors" / "trained" / HASH[:12]
    settings = ReportConfig(
        output=str(tmp_path / "report"),
        ground_truth=str(quickstart / "photos" / "gnd_seen.pkl"),
        query_descriptors=str(described / "seen"),
        index_descriptors=str(described / "index"),
        image_root=str(tmp_path),
    )
    page = check_self_contained(write_report(settings).read_text())
    text = _text(page)
    assert "no distractors" in text and "--distractor_descriptors" in text
    assert "no saved model; give" in text and "re-ranking none" in text
    assert f"{tmp_path}/index/p" in text  # the first photo that is gone, after what has none
    assert (tmp_path / "report" / "queries_gnd_seen.png").exists()
    scores = json.loads((quickstart / "scores" / "trained_seen.json").read_text())
    assert f"{100 * scores['hard']['mAP']:.1f}" in text


# --- what the network sees -----------------------------------------------------------


def _read(quickstart, **more):
    """Returns the files of a run and its evaluations: of seen, and of unseen landmarks."""
    run = run_files.find_files(ReportConfig(run=str(quickstart), output="x", **more))
    return run, [run_files.read_evaluation(run, task) for task in run.tasks]


def _first(one, query, positive):
    """Returns (row, rank from 1, similarity) of the first photo that is positive, or not."""
    scores = np.asarray(one.inputs.index) @ one.inputs.queries[query]
    truth = one.truth.queries[query]
    positives = {*truth.easy, *truth.hard}
    order = np.argsort(-scores).tolist()
    row = next(row for row in order if (row in positives) == positive)
    return row, order.index(row) + 1, scores[row]


def test_pairs_are_the_first_of_the_best_and_of_the_worst_query(quickstart):
    run, (seen, _) = _read(quickstart)
    ap = seen.plain_scores["medium"]["AP"]
    best, worst = int(np.argmax(ap)), int(np.argmin(ap))
    assert best != worst and ap[worst] < 1
    # Photos are cut and shrunk as those that were described.
    protocol = seen.inputs.protocol | {"query_max_side": 12, "index_max_side": 20}
    inputs = dataclasses.replace(seen.inputs, protocol=protocol)
    model = load_model(run.saved_model)
    section = make_section(MATCHES, run, [dataclasses.replace(seen, inputs=inputs)], lambda: model)
    words, *pictures = section.blocks
    assert words.startswith("Lines over the photos join") and len(pictures) == 2
    for picture, query, positive in zip(pictures, (best, worst), (True, False), strict=True):
        row, rank, similarity = _first(seen, query, positive)
        assert f"query q{query}, AP {100 * ap[query]:.1f} %" in picture.caption
        assert f"and p{row}, the first photo" in picture.caption
        assert picture.caption.endswith(f"at rank {rank}.")
        assert f"similarity {similarity:.3f}: Heat maps" in picture.alt
        assert picture.figure.texts[-2].get_text().endswith(f"{similarity:.3f}")
        shown = [axes.images[0].get_array().shape for axes in picture.figure.axes[:2]]
        assert shown == [(12, 8, 3), (15, 20, 3)]
        assert [axes.get_title() for axes in picture.figure.axes[:2]] == [f"q{query}", f"p{row}"]


def test_a_query_that_finds_nothing_has_no_right_pair(quickstart):
    run, (seen, _) = _read(quickstart)
    order = np.argsort(-(np.asarray(seen.inputs.index) @ seen.inputs.queries[0]))
    nothing = np.array([], np.int64)
    last = Query(None, order[-1:], nothing, nothing)
    truth = dataclasses.replace(seen.truth, queries=(last, *seen.truth.queries[1:]))
    scores = seen.plain_scores | {"medium": {"AP": [0.01, None, None]}}
    one = dataclasses.replace(seen, truth=truth, plain_scores=scores)
    model = load_model(run.saved_model)
    _, note, picture = make_section(MATCHES, run, [one], lambda: model).blocks
    words = "a right pair: the best query, q0, AP 1.0 %, finds no photo of its landmark."
    assert note.text == words and picture.name == "match_mistaken_seen_landmarks"


def test_a_query_without_mistake_has_no_mistaken_pair(quickstart):
    run, (seen, _) = _read(quickstart)
    perfect = seen.plain_scores | {"medium": {"AP": [1.0, None, None]}}
    none = seen.plain_scores | {"medium": {"AP": [None] * 3}}
    model = load_model(run.saved_model)

    def blocks(scores, title):
        one = dataclasses.replace(seen, plain_scores=scores)
        return make_section(title, run, [one], lambda: model).blocks

    _, picture, note = blocks(perfect, MATCHES)
    assert picture.name == "match_right_seen_landmarks"
    assert note.text == "a mistaken pair: each query of seen landmarks finds its own photos first."
    for title in (MATCHES, SAW):
        (note,) = blocks(none, title)
        assert note.text == "no query of seen landmarks has a positive photo at level medium"


@pytest.mark.parametrize(
    ("local", "words"),
    [
        (("maps",), "has no signature 'local_features': it was exported before"),
        ((), "gives no local features: export it again"),
    ],
)
def test_a_model_without_local_features_is_told_of_once(quickstart, tmp_path, local, words):
    stand_in.save(tmp_path / "model", local)
    run, evaluations = _read(quickstart, saved_model=str(tmp_path / "model"))
    same = [_of_model(one, "abc") for one in evaluations]
    sections = [
        make_section(title, run, same, lambda: load_model(run.saved_model))
        for title in (SAW, MATCHES)
    ]
    assert [type(block) for block in sections[1].blocks] == [Heading, Note]
    assert words in sections[1].notes[0] and sections[1].is_empty
    assert sections[0].is_empty == (not local)


def _local_sets(folder, query_size=(24, 16)):
    """Local feature sets of queries and index, whose photos all show one thing."""
    rng = np.random.default_rng(0)
    places, strengths = rng.random((16, 2)), np.linspace(1, 0.5, 16, dtype=np.float32)

    def photos(ids, size):
        for id_ in ids:
            positions = (places * size + rng.normal(0, 0.01, places.shape)).astype(np.float32)
            rows = np.eye(16, dtype=np.float32)
            yield id_, LocalFeatures(positions, strengths, strengths, rows, size)

    for name, ids, size in (("query", QUERIES, query_size), ("index", INDEX, (24, 32))):
        meta = LOCAL_META | {"model_hash": HASH, "crop": name == "query"}
        writing.write(folder / name, photos(ids, size), meta)
    return {f"{name}_local": str(folder / name) for name in ("query", "index")}


def test_local_feature_sets_show_why_without_a_model(quickstart, tmp_path):
    sets = _local_sets(tmp_path)
    run, (seen, _) = _read(quickstart, **sets)
    without = dataclasses.replace(run, saved_model="")
    _, *pictures = make_section(MATCHES, without, [seen], lambda: None).blocks
    assert [picture.name for picture in pictures] == [
        *("match_right_seen_landmarks", "match_mistaken_seen_landmarks")
    ]
    for picture in pictures:
        assert "16 places look like one of the other photo; 16 of them agree" in picture.alt
        assert len(picture.figure.axes) == 3
    # Beside heat maps, where the model has a local branch; as the evaluation's flags said.
    scores = {name: dict(found) for name, found in seen.scores.items()}
    own = scores[seen.files.own]
    own["protocol"] = own["protocol"] | {
        "verification": {"match_distance": 1e-9, "max_features": 9}
    }
    strict = dataclasses.replace(seen, scores=scores)
    model = load_model(run.saved_model)
    _, picture, _ = make_section(MATCHES, run, [strict], lambda: model).blocks
    assert "16 places look" in picture.alt and "Heat maps over both" in picture.alt
    own["protocol"]["verification"]["max_residual"] = "0.01%"
    _, picture, _ = make_section(MATCHES, without, [strict], lambda: None).blocks
    assert "16 of them agree" not in picture.alt
    with pytest.raises(InputError, match="belong together"):
        ReportConfig(output="x", query_local=sets["query_local"])
    # Of whole queries, where descriptors are of boxes.
    run, (seen, _) = _read(quickstart, **_local_sets(tmp_path, (24, 32)))
    (note,) = make_section(MATCHES, without, [seen], lambda: None).blocks
    assert "32 x 24 pixels, which is another part of the photo" in note.text


def _of_model(one, model_hash):
    protocol = one.inputs.protocol | {"model_hash": model_hash}
    return dataclasses.replace(one, inputs=dataclasses.replace(one.inputs, protocol=protocol))


def test_maps_of_another_model_are_not_shown(quickstart):
    run, (seen, _) = _read(quickstart)
    model = load_model(run.saved_model)
    for title in (SAW, MATCHES):
        (note,) = make_section(title, run, [_of_model(seen, "another")], lambda: model).blocks
        assert note.text.endswith("saved_model/trained is not the model of the descriptors")
        # Of an .npy it is not known whose they are.
        blocks = make_section(title, run, [_of_model(seen, None)], lambda: model).blocks
        assert any(isinstance(block, Picture) for block in blocks)
    (caption,) = {block.caption for block in blocks[:2] if isinstance(block, Picture)}
    assert caption.startswith("Right pair of seen landmarks: query q")


def test_maps_are_of_the_best_a_middle_and_the_worst_query(quickstart):
    run, (seen, _) = _read(quickstart)
    model = load_model(run.saved_model)
    ap = seen.plain_scores["medium"]["AP"]
    _, *pictures = make_section(SAW, run, [seen], lambda: model).blocks
    order = sorted(range(3), key=lambda query: -ap[query])
    for picture, query in zip(pictures, order, strict=True):
        words = f"Query q{query}, AP {100 * ap[query]:.1f} %"
        assert picture.caption == f"{words}, seen landmarks."
        assert picture.alt.startswith(f"{words}: the photo and three maps of 2 x 1 cells")


def test_nothing_to_show(tmp_path):
    (tmp_path / "run").mkdir()
    settings = ReportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "report"))
    with pytest.raises(InputError, match="nothing to show"):
        write_report(settings)
    assert not (tmp_path / "report").exists()


def test_scores_of_another_model_are_refused(quickstart, tmp_path):
    report = json.loads((quickstart / "scores" / "trained_seen.json").read_text())
    report["protocol"]["model_hash"] = "another"
    described = quickstart / "descriptors" / "trained" / HASH[:12]

    def settings():
        files.write_json(tmp_path / "scores.json", report)
        return ReportConfig(
            output=str(tmp_path / "report"),
            ground_truth=str(quickstart / "photos" / "gnd_seen.pkl"),
            query_descriptors=str(described / "seen"),
            index_descriptors=str(described / "index"),
            scores=str(tmp_path / "scores.json"),
        )

    with pytest.raises(InputError, match="comes from another model than the descriptors"):
        write_report(settings())
    report["protocol"]["model_hash"] = HASH
    for level in score.LEVELS:
        report[level]["AP"] = [0.5] * 4
    with pytest.raises(InputError, match="has 4 queries, not 3"):
        write_report(settings())
    del report["hard"]["AP"]
    with pytest.raises(InputError, match=r"scores\.json is not the report\.json of an evaluation"):
        write_report(settings())


def test_rows_of_other_norms_are_divided_as_their_scores_say(quickstart, tmp_path):
    described = quickstart / "descriptors" / "trained" / HASH[:12]
    truth = quickstart / "photos" / "gnd_seen.pkl"
    named = {"ground_truth": str(truth)}
    for key, name in (("query_descriptors", "seen"), ("index_descriptors", "index")):
        named[key] = str(tmp_path / f"{name}.npy")
        np.save(named[key], 3 * np.asarray(descriptors.read(described / name).descriptors))
    with pytest.raises(InputError, match=r"give --scores of `dolg evaluate revisited --normalize`"):
        run_files.read_evaluation(*_only_task(ReportConfig(output="report", **named)))
    scores = str(tmp_path / "scores.json")
    report = score.evaluate(score.RevisitedConfig(output=scores, normalize=True, **named))
    assert report["protocol"]["normalize"]
    assert "descriptors were divided by their norms" in report["protocol"]["remarks"]
    found = run_files.read_evaluation(
        *_only_task(ReportConfig(output="report", scores=scores, **named))
    )
    assert found.plain_scores["medium"]["AP"] == report["medium"]["AP"]


def _only_task(settings):
    run = run_files.find_files(settings)
    return run, *run.tasks


def test_the_sets_of_the_network_are_found(quickstart, tmp_path):
    other = quickstart / "descriptors" / "trained" / "000000000000"
    other.mkdir()
    try:
        run = run_files.find_files(ReportConfig(run=str(quickstart), output="x"))
    finally:
        other.rmdir()
    assert {task.name for task in run.tasks} == {"seen landmarks", "unseen landmarks"}
    assert all(HASH[:12] in task.query_descriptors for task in run.tasks)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run=nowhere", "--output=x"], "--run=nowhere: no such folder"),
        (["--scores=nowhere", "--output=x"], "--scores=nowhere: no such file or folder"),
        (["--run=."], "--output is required"),
        (["--rum=."], "Unknown command line flag 'rum'"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, words, tmp_path):
    command = [sys.executable, "-m", "dolg_tf", "report", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
