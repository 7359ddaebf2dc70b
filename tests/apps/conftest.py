"""Shared by the tests of pictures, report and page."""

import base64
import hashlib
import html.parser

import numpy as np
import pytest

from dolg_tf.apps.pictures.verified import VerifiedPair
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.matching import Matches
from dolg_tf.retrieval.verification.pairs import Verification


class _Page(html.parser.HTMLParser):
    """What a browser would find: elements with their attributes, and the text."""

    VOID = ("meta", "img", "source")

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open, self._style = [], [], [], ""
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        (self.text if self._open[-1:] != ["style"] else []).append(data)
        if self._open[-1:] == ["style"]:
            self._style += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def _check_self_contained(text):
    """Makes sure that a page fetches nothing; returns it parsed."""
    page = _Page(text)
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.elements}
    for _, attributes in page.elements:
        assert not {"style", "onload"} & set(attributes)
        for key in ("src", "srcset", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:image/"))
    for image in page.all("img"):
        assert image["alt"] and image["src"].startswith("data:image/")
        assert int(image["width"]) > 0 and int(image["height"]) > 0
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} == set(ids)
    assert "url(" not in page._style and "@import" not in page._style
    metas = {m.get("http-equiv") or m.get("name"): m.get("content") for m in page.all("meta")}
    digest = base64.b64encode(hashlib.sha256(page._style.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
        in (metas["Content-Security-Policy"])
    )
    assert metas["viewport"].startswith("width=device-width")
    assert "prefers-color-scheme: dark" in page._style
    return page


@pytest.fixture(scope="session")
def check_self_contained():
    """Function of a page's HTML that makes sure it fetches nothing, and returns it parsed."""
    return _check_self_contained


def _one_view(map_, inliers=0, others=0, size=(240, 320), query_size=(600, 500)):
    """Two photos whose features agree on a map (2, 3), or on none, from the second to the first."""
    rng, count = np.random.default_rng(0), inliers + others
    seen, there = (rng.uniform(0, side, (count, 2)) for side in (size, query_size))
    if map_ is not None:
        there[:inliers] = seen[:inliers] @ map_[:, :2].T + map_[:, 2]

    def features(positions, size):
        strengths = np.sort(rng.random(count))[::-1].astype(np.float32)
        descriptors = np.eye(max(count, 1), dtype=np.float32)[:count]
        positions = positions.astype(np.float32)
        return LocalFeatures(positions, strengths * 0 + 1, strengths, descriptors, size)

    pairs = Matches(np.arange(count), np.arange(count))
    found = Verification(pairs, np.arange(count) < inliers, map_)
    return VerifiedPair(features(there, query_size), features(seen, size), found)


@pytest.fixture(scope="session")
def one_view():
    """Function that makes two photos' features that agree on one view."""
    return _one_view
