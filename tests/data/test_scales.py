"""Each scale set is usable and told of."""

import pathlib

import pytest

from dolg_tf.data.scales import SCALE_SETS

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", SCALE_SETS)
def test_a_scale_set_is_in_order_and_told_of(name):
    scales = SCALE_SETS[name]
    assert list(scales) == sorted(set(scales)) and scales[0] > 0 and 1.0 in scales
    text = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    assert f"`{name}`" in text and ", ".join(f"{scale:g}" for scale in scales) in text
