"""Recipes and optional packages: found, or named with the remedy."""

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
    monkeypatch.setattr(installed, "_PACKAGE", tmp_path / "site-packages" / "dolg_tf")
    assert installed.install_command("report") == "pip install 'dolg_tf[report]'"
    assert installed.find_recipes() == {}
