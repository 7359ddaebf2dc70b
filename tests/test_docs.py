"""What README, docs and module docstrings tell is there: commands, flags, extras, links."""

import ast
import functools
import importlib
import pathlib
import re
import shlex
import tomllib
import typing

import pytest
from absl import flags

from dolg_tf.cli import COMMANDS
from dolg_tf.stage import command, installed
from dolg_tf.stage import config as configs

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINKED = (*PAGES, ROOT / "WORKSPACE_NOTES.md", *sorted((ROOT / "benchmarks").rglob("*.md")))
MODULES = (
    ROOT / "train.py",
    *sorted((ROOT / "export").glob("*.py")),
    *sorted((ROOT / "dolg_tf").rglob("*.py")),
)
# Flags of other people's programs (TensorFlow Serving, DELF, Beam's worker pool, Dask) and of
# scripts in benchmarks/ and tests/.
FOREIGN = {
    "enable_batching",
    "enable_per_model_batching_parameters",
    "query_features_dir",
    "index_features_dir",
    "nthreads",
    "service_port",
    "slow",
    "together",
    "use_geometric_verification",
    "work",
}
SCRIPTS = {
    "train.py": "train",
    "export/convert_checkpoint.py": "convert",
    "export/export_saved_model.py": "export",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: pathlib.Path, *languages: str) -> list[str]:
    return [code for language, code in _FENCE.findall(page.read_text()) if language in languages]


def _inline(page: pathlib.Path) -> list[str]:
    """The code in a page's sentences and tables."""
    return re.findall(r"`([^`]+)`", _FENCE.sub("", page.read_text()))


def _commands(text: str) -> list[list[str]]:
    """The words of a shell text's commands of ours: `dolg ...`, `python train.py ...`."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        start = re.match(r"\s*(?:\S+=\S* +)*(dolg|python)\s", line)
        if start:
            words = shlex.split(line[start.start(1) :], comments=True)
            if words[0] == "dolg" or (len(words) > 1 and words[1] in SCRIPTS):
                found.append(words)
    return found


@functools.cache
def _configurations_of(name: str) -> tuple[type, ...]:
    module, function = COMMANDS[name].stage.split(":")
    hints = typing.get_type_hints(getattr(importlib.import_module(module), function))
    return tuple(hint for key, hint in hints.items() if key != "return")


def _configurations(words: list[str]) -> tuple[tuple[type, ...], list[str]]:
    """The configurations of a command, and its flags."""
    if words[0] == "python":
        return _configurations_of(SCRIPTS[words[1]]), words[2:]
    for number in (2, 1):
        name = " ".join(words[1 : 1 + number])
        if name in COMMANDS:
            return _configurations_of(name), words[1 + number :]
    raise AssertionError(f"{' '.join(words)} is not a command")


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
NAMED = [
    (page.name, words) for page in PAGES for code in _inline(page) for words in _commands(code)
]


@pytest.mark.parametrize(("where", "words"), WHOLE, ids=_ids(WHOLE))
def test_a_command_is_one_that_can_be_given(where, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes, argv = _configurations(words)
    recipes = installed.find_recipes(words[1] if words[1:] else "")
    argv = command.with_recipe(argv, recipes)
    values = _flags(classes)
    here = [x for x in argv if not re.match(r"--flagfile=(?!(.*/)?configs/)", x)]
    rest = values(["program", *here])[1:]
    assert bool(rest) == (configs.words_of(*classes) is not None)
    if here == argv:  # else the rest is in a flagfile that a run writes
        for cls in classes:
            configs.from_flags(cls, values, rest)


@pytest.mark.parametrize(("where", "words"), NAMED, ids=_ids(NAMED))
def test_a_command_in_a_sentence_is_there(where, words):
    classes, argv = _configurations(words)
    known = {*_flags(classes), "flagfile", "help", "recipe"}
    if configs.words_of(*classes):
        argv = [word for word in argv if word.startswith("-")]
    assert {re.split("[=[]", word.lstrip("-"))[0] for word in argv} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_flag_in_a_sentence_is_one_of_some_command(page):
    known = {*FOREIGN, "flagfile", "help", "recipe", "version"}
    known = known.union(*(_flags(_configurations_of(name)) for name in COMMANDS))
    for code in _inline(page):
        for name in re.findall(r"(?<!\S)--(\w+)", code):
            assert name in known or name.removeprefix("no") in known, f"--{name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_told_of(name):
    text = "\n".join(page.read_text() for page in PAGES)
    assert re.search(rf"dolg {re.escape(name)}\b", text)


def test_the_extras_that_are_named_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    text = "\n".join(path.read_text() for path in (*PAGES, *MODULES, ROOT / "pyproject.toml"))
    named = ",".join(re.findall(r"(?:dolg_tf|'\.)\[([\w,-]+)\]", text)).split(",")
    assert set(named) <= set(extras) and {"beam", "faiss", "tfds"} <= set(named)
    needed = re.findall(r'\binstalled\.need\("([\w-]+)"', text)
    assert len(needed) >= 6 and set(needed) <= set(extras)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_and_imports_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", _FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert "://" in link or target.exists(), link
        assert not anchor or "://" in link or anchor in _anchors(target), link
    for code in _blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("dolg_tf"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def _anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_message_names_a_file_that_an_installed_package_lacks():
    lacking = re.compile(
        r"\btrain\.py\b|Makefile|\bconfigs/|\bexport/\w+\.py|\bmake (quick|test|bench)"
    )
    for path in (ROOT / "dolg_tf").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = lacking.search(node.value)
                assert node.value in docstrings or not found, f"{path}: {node.value}"
