"""The front door of Python: seven names, at once, typed, and told of."""

import ast
import inspect
import pathlib
import typing

import api_page
import pytest

import dolg_tf


def test_the_page_is_that_of_the_code():
    made = "run `python tests/support/api_page.py` and commit docs/api.md"
    assert api_page.PAGE.read_text() == api_page.make_page(), made


@pytest.mark.parametrize("name", dolg_tf.__all__)
def test_each_name_is_there_and_its_parameters_are_typed(name):
    assert name in dir(dolg_tf)
    value = getattr(dolg_tf, name)
    members = [value]
    if inspect.isclass(value):
        members = [
            getattr(member, "__func__", member)
            for key, member in vars(value).items()
            if not key.startswith("_") and callable(getattr(member, "__func__", member))
        ]
    for member in members:
        if inspect.isfunction(member):
            parameters = [
                key for key in inspect.signature(member).parameters if key not in "self cls"
            ]
            assert set(parameters) <= set(typing.get_type_hints(member)), member


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = dolg_tf.serch


def test_the_stub_has_the_same_names_from_the_same_places():
    tree = ast.parse(pathlib.Path(dolg_tf.__file__).with_suffix(".pyi").read_text())
    found = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == dolg_tf._HOMES
