"""What README, docs and module docstrings tell is there: commands, flags, extras, links."""

import ast
import functools
import importlib
import pathlib
import re
import runpy
import shlex
import tomllib
from unittest import mock

import pytest
from absl import flags

from dolg_tf.stage import config as configs

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MODULES = (
    ROOT / "train.py",
    *sorted((ROOT / "export").glob("*.py")),
    *sorted((ROOT / "dolg_tf").rglob("*.py")),
)
# Flags of other people's programs: TensorFlow Serving, DELF, Beam's worker pool.
FOREIGN = {
    "enable_batching",
    "enable_per_model_batching_parameters",
    "query_features_dir",
    "index_features_dir",
    "service_port",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: pathlib.Path, *languages: str) -> list[str]:
    return [code for language, code in _FENCE.findall(page.read_text()) if language in languages]


def _inline(page: pathlib.Path) -> list[str]:
    """The code in a page's sentences and tables."""
    return re.findall(r"`([^`]+)`", _FENCE.sub("", page.read_text()))


def _commands(text: str) -> list[list[str]]:
    """The words behind `python` of a shell text's commands, if they are commands of ours."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [
        line[line.index("python ") :] for line in lines if re.match(r"\s*(\S+=.*)?python ", line)
    ]
    words = [shlex.split(line, comments=True)[1:] for line in found]
    return [w for w in words if w[0] != "-m" or w[1].startswith("dolg_tf")]


@functools.cache
def _stages(path: pathlib.Path) -> dict[str, tuple[type, ...]]:
    """The configurations that a file hands to `config.main`, or to `config.commands` by name."""
    found = {}

    def main(stage, *classes):
        found[""] = classes

    def commands(stages):
        found.update({name: (cls,) for name, (_, cls) in stages.items()})

    with mock.patch.multiple(configs, main=main, commands=commands):
        runpy.run_path(str(path), run_name="__main__")
    return found


def _configurations(words: list[str]) -> tuple[tuple[type, ...], list[str]]:
    """The configurations of a command, and its flags."""
    module = words[0] == "-m"
    name = words[1].replace(".", "/") + ".py" if module else words[0]
    stages, rest = _stages(ROOT / name), words[1 + module :]
    return (stages[""], rest) if "" in stages else (stages[rest[0]], rest[1:])


def _flags(classes) -> flags.FlagValues:
    values = flags.FlagValues()
    configs.define_flags(*classes, values=values)
    return values


def _ids(commands) -> list[str]:
    return [f"{where}: {' '.join(words)[:60]}" for where, words in commands]


WHOLE = [
    (page.name, words)
    for page in PAGES
    for block in _blocks(page, "bash", "sh")
    for words in _commands(block)
]
WHOLE += [
    (path.stem, words)
    for path in MODULES
    for words in _commands(ast.get_docstring(ast.parse(path.read_text())) or "")
]
COMMANDS = [path for path in MODULES if 'if __name__ == "__main__":' in path.read_text()]
NAMED = [
    (page.name, words) for page in PAGES for code in _inline(page) for words in _commands(code)
]


@pytest.mark.parametrize(("where", "words"), WHOLE, ids=_ids(WHOLE))
def test_a_command_is_one_that_can_be_given(where, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes, argv = _configurations(words)
    values = _flags(classes)
    here = [x for x in argv if not re.match(r"--flagfile=(?!configs/)", x)]
    assert values(["program", *here])[1:] == []
    if here == argv:  # else the rest is in a flagfile that a run writes
        for cls in classes:
            configs.from_flags(cls, values)


@pytest.mark.parametrize(("where", "words"), NAMED, ids=_ids(NAMED))
def test_a_command_in_a_sentence_is_there(where, words):
    classes, argv = _configurations(words)
    known = {*_flags(classes), "flagfile", "help"}
    assert {re.split("[=[]", word.lstrip("-"))[0] for word in argv} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_flag_in_a_sentence_is_one_of_some_command(page):
    stages = [classes for path in COMMANDS for classes in _stages(path).values()]
    known = {*FOREIGN, "flagfile", "help"}.union(*map(_flags, stages))
    for code in _inline(page):
        for name in re.findall(r"(?<!\S)--(\w+)", code):
            assert name in known or name.removeprefix("no") in known, f"--{name}"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_is_told_of(path):
    text = "\n".join(page.read_text() for page in PAGES)
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("dolg_tf"):
        name = name.removesuffix(".py").replace("/", ".")
    for command in _stages(path):
        assert re.search(rf"{re.escape(f'{name} {command}'.strip())}\b", text)


def test_the_extras_that_are_named_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    text = "\n".join(path.read_text() for path in (*PAGES, *MODULES, ROOT / "pyproject.toml"))
    named = ",".join(re.findall(r"dolg_tf\[([\w,-]+)\]", text)).split(",")
    assert set(named) <= set(extras) and {"beam", "search", "tfds"} <= set(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_imports_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", _FENCE.sub("", page.read_text())):
        assert "://" in link or (page.parent / link).exists(), link
    for code in _blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("dolg_tf"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
