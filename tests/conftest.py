"""Shared fixtures. Tests mirror the package's folders."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


def _folder(variable: str) -> pathlib.Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: this test reads data that is not in the repository")
    return pathlib.Path(value)


@pytest.fixture
def real_photos() -> pathlib.Path:
    """Folder of real landmark photos with a labels.csv (path, landmark, split)."""
    return _folder("DOLG_REAL_PHOTOS")


@pytest.fixture
def ground_truths() -> pathlib.Path:
    """Folder of the revisited ground truths and the scores made from them."""
    return _folder("DOLG_GROUND_TRUTHS")
