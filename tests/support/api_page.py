"""Writes docs/api.md from the docstrings of the public names of `dolg_tf`.

python tests/support/api_page.py
"""

import dataclasses
import inspect
import pathlib
import re
import typing
from collections.abc import Iterator

import dolg_tf

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "api.md"
_OPENING = """# Python API

Made from the code by `python tests/support/api_page.py`; a test holds it to the docstrings.
`import dolg_tf` takes no time: each name is imported from its module when it is used.

Every stage is a function too: each command of `dolg` calls one, which takes a frozen dataclass.
Its fields are the flags.
"""


def make_page() -> str:
    """Returns the page as Markdown."""
    entries = [_entry(name, getattr(dolg_tf, name)) for name in dolg_tf.__all__]
    return "\n".join([_OPENING, *entries])


def _entry(name: str, value) -> str:
    parts = [f"## `dolg_tf.{name}`\n", f"From `{value.__module__}`.\n"]
    if inspect.isclass(value):
        parts += [_docstring(value), _options(value), *_methods(value)]
    else:
        parts += [f"```\n{_signature(name, value)}\n```\n", _docstring(value)]
        returned = typing.get_type_hints(value)["return"]
        if returned.__module__.startswith("dolg_tf"):
            parts += [f"### `{returned.__name__}`\n", _docstring(returned), *_methods(returned)]
    return "\n".join(parts)


def _methods(cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        if inspect.isfunction(getattr(member, "__func__", member)) and not name.startswith("_"):
            yield f"### `{cls.__name__}.{_signature(name, member)}`\n"
            yield _docstring(member)


def _signature(name: str, member) -> str:
    member = getattr(member, "__func__", member)
    # Classes by name, without their modules.
    return name + re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", str(inspect.signature(member)))


def _docstring(value) -> str:
    """Returns a docstring; its sections keep their indentation as a block of text."""
    first, _, rest = inspect.getdoc(value).partition("\n\n")
    return f"{first}\n" + (f"\n~~~text\n{rest}\n~~~\n" if rest else "")


def _options(config: type) -> str:
    """Returns the options of a configuration as a table, or "" for other classes."""
    if not dataclasses.is_dataclass(config):
        return ""
    rows = []
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            words = field.metadata["help"].replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{field.default}` | {words} |")
    head = ["| option | default | what it is |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""]) if rows else ""


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
