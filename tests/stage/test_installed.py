"""Recipes and optional packages: found, or named with the remedy."""

import importlib.metadata

import pytest

from dolg_tf.stage import installed
from dolg_tf.stage.config import InputError


def test_a_recipe_by_name_or_path(tmp_path):
    flagfile = tmp_path / "mine.flags"
    flagfile.write_text("--loss=cosface\n")
    assert installed.find_recipe(str(flagfile)) == str(flagfile)
    assert installed.find_recipe("r50").endswith("configs/r50.flags")
    with pytest.raises(InputError, match=r"'r5' is neither a recipe \(.*r50.*\) nor a flagfile"):
        installed.find_recipe("r5")


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    installed.need("report", "pictures", "json")
    told = r"pictures: no_such_one is missing; pip install -e '\.\[report\]'"
    with pytest.raises(InputError, match=told):
        installed.need("report", "pictures", "json", "no_such_one")
    with pytest.raises(InputError, match="no_such_one, nor_that are missing; pip install"):
        installed.need("report", "pictures", "no_such_one", "nor_that")
    monkeypatch.setattr(installed, "_PACKAGE", tmp_path / "site-packages" / "dolg_tf")
    declared = ["numpy>=2", 'jinja2>=3.1; extra == "report"', 'onnx>=1; extra == "onnx"']
    declared += ['matplotlib>=3.9; extra == "report"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    told = "pip install 'jinja2>=3.1' 'matplotlib>=3.9'"
    assert installed.install_command("report") == told
    assert installed.find_recipes() == {}
