import pathlib

import pytest

from dolg_tf.apps.report.sections import REPORT_SECTIONS

_DOCS = pathlib.Path(__file__).parents[3] / "docs" / "report.md"


@pytest.mark.parametrize("title", REPORT_SECTIONS)
def test_each_section_has_a_line_in_the_docs(title):
    assert f"\n| {title} | " in _DOCS.read_text(encoding="utf-8")
