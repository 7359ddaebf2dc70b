"""Writes docs/api.md from the docstrings of the names that `import dolg_tf` gives.

python tests/support/api_page.py
"""

import dataclasses
import inspect
import pathlib

import dolg_tf

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "api.md"
_OPENING = """# Python API

Made from the code by `python tests/support/api_page.py`; a test holds it to the docstrings.
`import dolg_tf` takes no time: each name is imported from its module when it is used.

Every stage is a function too: `dolg COMMAND` calls one that takes a frozen dataclass, whose
fields are the flags.
"""


def make_page() -> str:
    """Returns the page as Markdown."""
    entries = [_entry(name, getattr(dolg_tf, name)) for name in dolg_tf.__all__]
    return "\n".join([_OPENING, *entries])


def _entry(name: str, value) -> str:
    parts = [f"## `dolg_tf.{name}`\n", f"From `{value.__module__}`.\n"]
    if dataclasses.is_dataclass(value):
        parts += [_docstring(value), _options(value)]
    elif inspect.isclass(value):
        parts.append(_docstring(value))
        for key, member in vars(value).items():
            if not key.startswith("_") and (inspect.getdoc(member) or "").strip():
                parts += [f"### `{_signature(key, member)}`\n", _docstring(member)]
    else:
        parts += [f"```\n{_signature(name, value)}\n```\n", _docstring(value)]
    return "\n".join(parts)


def _signature(name: str, member) -> str:
    member = getattr(member, "__func__", member)
    return f"{name}{inspect.signature(member)}" if callable(member) else name


def _docstring(value) -> str:
    """Returns a docstring; its sections keep their indentation as a block of text."""
    first, _, rest = inspect.getdoc(value).partition("\n\n")
    return f"{first}\n" + (f"\n```text\n{rest}\n```\n" if rest else "")


def _options(config: type) -> str:
    """Returns the fields of a configuration as a table."""
    rows = ["| field | default | what it is |", "| --- | --- | --- |"]
    for field in dataclasses.fields(config):
        words = field.metadata.get("help", "see the docstring of its class").replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{field.default}` | {words} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
