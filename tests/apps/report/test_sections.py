import pathlib

import pytest

from dolg_tf.apps.report.page import Heading, Note, Section
from dolg_tf.apps.report.sections import REPORT_SECTIONS, without_empty

_DOCS = pathlib.Path(__file__).parents[3] / "docs" / "report.md"


@pytest.mark.parametrize("title", REPORT_SECTIONS)
def test_each_section_has_a_line_in_the_docs(title):
    assert f"\n| {title} | " in _DOCS.read_text(encoding="utf-8")


def test_scores_and_ranked_lists_come_before_curves():
    titles = [*REPORT_SECTIONS]
    assert titles[:3] == ["Scores", "Queries", "Why do these match?"] and titles[-1] == "Training"


def test_empty_sections_are_gathered_at_the_end():
    sections = [
        Section("A", [Heading("h"), Note("no photos")]),
        Section("B", ["words", Note("part of it")]),
        Section("C", [Note("no photos"), Note("no model")]),
    ]
    shown = without_empty(sections)
    assert [section.title for section in shown] == ["B", "Not shown"]
    assert shown[1].blocks == [Note("no photos", "A, C"), Note("no model", "C")]
    assert without_empty(shown[:1]) == shown[:1]
