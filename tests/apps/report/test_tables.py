import json

from dolg_tf.apps.report import tables


def test_interval():
    assert tables.interval({"mAP": 0.5, "mAP_interval": [0.4, 0.625]}) == (
        "50.0 (40.0\N{EN DASH}62.5)"
    )
    assert tables.interval({"mAP": None, "mAP_interval": None}) == "\N{EN DASH}"


def test_how_it_was_scored_is_said_aloud():
    protocol = {
        "ground_truth": "gnd_x",
        "queries": 70,
        "index": 4993,
        "distractors": 1001001,
        "query_crop": "none",
        "index_scales": [0.7071, 1.0],
        "model_hash": "0123456789abcdef",
        "whitening": {"sha256": "x"},
        "rerank": {"method": "superglobal", "m": 400, "beta": 0.15},
        "remarks": ["faces are blurred"],
    }
    rows = dict(tables.how_scored(protocol))
    assert rows["queries"] == "70, NOT cut to their boxes: against the protocol"
    assert rows["index"] == "4,993 photos and 1,001,001 distractors"
    assert rows["scales"] == "0.7071, 1" and rows["model"] == "0123456789ab"
    assert rows["whitening"] == "yes" and rows["re-ranking"] == "superglobal (m 400, beta 0.15)"
    assert rows["remark"] == "faces are blurred"
    # Of an .npy little is known, and that is said too.
    rows = dict(tables.how_scored({"model_hash": None, "query_crop": None}))
    assert rows["model"] == rows["scales"] == rows["re-ranking"] == rows["whitening"] == "not known"
    assert rows["queries"] == "not known, not known" and "remark" not in rows


def test_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model": {"fusion": "concat", "other": 1}, "training": {"seed": 7}})
    )
    assert tables.recipe(str(path)) == [("fusion", "concat"), ("seed", "7")]
