import json

import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps.pictures.ranked_list import RankedPhoto, RankedRow, ranked_list
from dolg_tf.apps.report.page import Picture
from dolg_tf.pipelines.quickstart_report import score_table, write_quickstart_report


def _scores(easy, medium, hard, query_crop="box"):
    def level(value):
        interval = None if value is None else [value - 0.05, value + 0.05]
        return {"mAP": value, "mP@1": value, "AP": [value], "mAP_interval": interval}

    protocol = {
        "queries": 1200,
        "index": 34567,
        "distractors": 0,
        "query_crop": query_crop,
        "index_scales": [0.7071, 1.0],
    }
    levels = {"easy": level(easy), "medium": level(medium), "hard": level(hard)}
    return levels | {"protocol": protocol}


FULL = {
    "trained": {"seen": _scores(0.9, 0.8, 0.7), "unseen": _scores(0.8, 0.6, 0.5)},
    "untrained": {"seen": _scores(0.3, 0.2, 0.1), "unseen": _scores(0.3, 0.2, 0.1)},
    "colour_histogram": {"seen": _scores(0.25, 0.15, 0.1), "unseen": _scores(0.2, 0.15, 0.1)},
}


def test_writes_scores_page_and_picture(tmp_path):
    photo = np.zeros((4, 4, 3), np.uint8)
    figure = ranked_list([RankedRow(photo, [RankedPhoto(photo, "positive", 1.0)])])
    picture = Picture("ranked_list", figure, "a query and its nearest photo", "Best first.")
    facts = {"training photos": "1,800", "training time": "3m20s"}
    page = write_quickstart_report(tmp_path / "run", FULL, facts, [picture])
    assert page == tmp_path / "run/report.md"
    assert json.loads((tmp_path / "run/report.json").read_text()) == FULL
    text = page.read_text()
    assert "![a query and its nearest photo](ranked_list.png)" in text and "Best first." in text
    assert "| training time | 3m20s |" in text
    assert "1,200 queries, 34,567 index photos" in text
    assert "queries are cut to their boxes" in text and "2 scales (0.7071, 1)" in text
    with Image.open(tmp_path / "run/ranked_list.png") as drawn:
        assert drawn.size[0] > 100


def test_table():
    lines = score_table(FULL)
    cells = "90.0 (85.0-95.0) | 80.0 (75.0-85.0) | 70.0 (65.0-75.0)"
    assert lines[2].replace("\N{EN DASH}", "-") == f"| seen | trained DOLG | {cells} |"
    assert [line.split(" | ")[1] for line in lines[5:]] == [
        "trained DOLG",
        "untrained DOLG",
        "colour histogram",
    ]
    assert len(lines) == 2 + 6


def test_one_split_and_no_hard_photos(tmp_path):
    scores = {"trained": {"seen": _scores(0.9, 0.9, None)}}
    lines = score_table(scores)
    assert len(lines) == 3 and lines[2].endswith("| \N{EN DASH} |")
    text = write_quickstart_report(tmp_path, scores, {}).read_text()
    assert "unseen" not in text and "What it finds" not in text and "The run" not in text


def test_uncropped_queries_are_said_aloud(tmp_path):
    scores = {"trained": {"seen": _scores(0.9, 0.8, 0.7, "none")}}
    text = write_quickstart_report(tmp_path, scores, {}).read_text()
    assert "**queries are NOT cut to their boxes**" in text


def test_unknown_variant(tmp_path):
    with pytest.raises(ValueError, match="'best' is none of"):
        write_quickstart_report(tmp_path, {"best": {}}, {})
    with pytest.raises(ValueError, match="'both' is none of"):
        write_quickstart_report(tmp_path, {"trained": {"both": {}}}, {})
