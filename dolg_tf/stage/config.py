"""Stage configurations: frozen dataclasses that are at once command-line flags and JSON.

No TensorFlow here, so that `--help` and a mistyped flag answer at once.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Iterable, Sequence

from absl import flags


class InputError(ValueError):
    """Bad input that the user can mend: commands print it as one line, without a traceback."""


def words(help: str):
    """Returns a dataclass field of the words that stand on the command line without a flag.

    Args:
      help: what they are, as `--help` prints it; the field's name in capitals stands for them.
    """
    return dataclasses.field(default=(), metadata={"words": help})


def option(help: str, default=dataclasses.MISSING, *, unit: str = "", choices: Sequence[str] = ()):
    """Returns a dataclass field that is also a flag.

    Args:
      help: what it does, as `--help` prints it.
      default: the default value; without one the flag is required. None, for a `bool | None`: the
        flag may be left unset.
      unit: of the value, as `--help` prints it ("pixels", "steps").
      choices: the values a string option may take.
    """
    metadata = {"help": help, "unit": unit, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


def at_least(config, **least: int) -> None:
    """Holds options of a configuration against their least values.

    Raises:
      InputError: naming the first option below.
    """
    for name, low in least.items():
        if getattr(config, name) < low:
            raise InputError(f"--{name}={getattr(config, name)} must be at least {low}")


# --- dataclasses <-> JSON ------------------------------------------------------------


def to_dict(config) -> dict:
    """Returns the configuration as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict, source: str):
    """Returns `cls` from plain JSON values.

    Args:
      cls: a configuration dataclass.
      values: as `to_dict` gave them.
      source: where they were read, for the error.

    Raises:
      InputError: on a field that `cls` does not know, one it needs and is not there, or a value
        that is not of its kind or none of its choices.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: {cls.__name__} is {values!r:.60}; it must be an object")
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise InputError(f"{source}: unknown {cls.__name__} field {sorted(unknown)[0]!r}")
    kwargs = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = _plain(hints[field.name], values[field.name], field.name, source)
            choices = field.metadata.get("choices")
            if choices and value not in choices:
                raise InputError(
                    f"{source}: {field.name} is {value!r:.60}; it must be one of "
                    + ", ".join(choices)
                )
            kwargs[field.name] = value
    try:
        return cls(**kwargs)
    except (InputError, TypeError) as error:  # TypeError: a field without default is missing
        raise InputError(f"{source}: {error}") from error


_KINDS = {  # what JSON may hold for a field's type: it writes 3.0 as 3, too
    str: (str, "a string"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
}


def _plain(hint: type, value, name: str, source: str):
    """Returns a JSON value as the type that its field has."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, source)
    element = _element(hint)
    if element is not None:
        if not isinstance(value, list | tuple):
            raise InputError(f"{source}: {name} is {value!r:.60}; it must be a list")
        return tuple(_plain(element, item, name, source) for item in value)
    if _may_be_unset(hint):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    kind, words = _KINDS[hint]
    fits = isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
    # Neither NaN, nor infinite, nor a whole number too large for a float.
    if not fits or (hint is float and not abs(value) <= sys.float_info.max):
        raise InputError(f"{source}: {name} is {value!r:.60}; it must be {words}")
    return value


# --- dataclasses <-> flags -----------------------------------------------------------


def options(cls: type) -> list[dataclasses.Field]:
    """Returns the fields of a configuration that are flags."""
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def words_of(*classes: type) -> dataclasses.Field | None:
    """Returns the field of the words that a command takes besides flags; None: it takes none."""
    fields = (field for cls in classes for field in dataclasses.fields(cls))
    return next((field for field in fields if "words" in field.metadata), None)


def default_text(field: dataclasses.Field) -> str:
    """Returns the default of an option as `--help` prints it, or "required"."""
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    if value is None:
        return "unset"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"default {text or 'empty'}"


def _element(hint) -> type | None:
    """Returns T of `tuple[T, ...]`, None for other types."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _may_be_unset(hint) -> bool:
    """Tells whether a type is `bool | None` or `float | None`, whose flag may be left unset."""
    return type(None) in typing.get_args(hint)


def define_flags(*classes: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each option of the dataclasses."""
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in options(cls):
            hint, choices = hints[field.name], field.metadata["choices"]
            default = None if field.default is dataclasses.MISSING else field.default
            common = {"flag_values": values}
            name, help = field.name, field.metadata["help"]
            if _element(hint) is not None:
                default = None if default is None else [str(x) for x in default]
                flags.DEFINE_list(name, default, help, **common)
            elif choices:
                flags.DEFINE_enum(name, default, list(choices), help, **common)
            else:
                define = {
                    bool: flags.DEFINE_bool,
                    bool | None: flags.DEFINE_bool,
                    int: flags.DEFINE_integer,
                    float: flags.DEFINE_float,
                    float | None: flags.DEFINE_float,
                    str: flags.DEFINE_string,
                }[hint]
                define(name, default, help, **common)


def from_flags(cls: type, values: flags.FlagValues = flags.FLAGS, rest: Sequence[str] = ()):
    """Returns `cls` from the parsed flags.

    `~` at the start of a text is the user's home.

    Args:
      cls: a configuration dataclass.
      values: the flags.
      rest: the words without flags, for the field of `words`, if it has one.

    Raises:
      InputError: on a required flag without value, or a list element of the wrong type.
    """
    hints, kwargs = typing.get_type_hints(cls), {}
    if field := words_of(cls):
        kwargs[field.name] = tuple(map(_expanded, rest))
    for field in options(cls):
        name, value = field.name, values[field.name].value
        if value is None and not _may_be_unset(hints[name]):
            raise InputError(f"--{name} is required: {field.metadata['help']}")
        element = _element(hints[name])
        if isinstance(value, str):
            value = _expanded(value)
        elif element is not None:
            try:
                value = tuple(_expanded(x) if element is str else element(x) for x in value)
            except ValueError as error:
                raise InputError(f"--{name}={','.join(value)}: {error}") from error
        kwargs[name] = value
    return cls(**kwargs)


def _expanded(text: str) -> str:
    """Returns the text with `~` at its start as the user's home; that of nobody stays."""
    return os.path.expanduser(text)  # noqa: PTH111 - a Path would drop a slash at the end


def flags_of(values: dict, names: Iterable[str]) -> str:
    """Returns flags that give options these values again, for an error's remedy."""
    return " ".join(_flag(name, values[name]) for name in names)


def _flag(name: str, value) -> str:
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{name}"
    return f"--{name}={value}"


def to_flagfile(*configs) -> str:
    """Returns the text of a flagfile that gives these configurations again.

    A value that holds ` #` stands on a line of its own, where it is not taken for a comment.

    Raises:
      InputError: on a value that cannot be told from a comment or a flag there either.
    """
    lines = []
    for config in configs:
        for field in options(type(config)):
            value = getattr(config, field.name)
            if value is None:
                continue
            if isinstance(value, tuple):
                value = ",".join(map(str, value))
            text = str(value)
            alone = " #" in text
            if alone and text.startswith(("#", "//", "-")):
                raise InputError(f"--{field.name}={text}: a flagfile cannot hold this value")
            lines += [f"--{field.name}", text] if alone else [_flag(field.name, value)]
    return "\n".join(lines) + "\n"
