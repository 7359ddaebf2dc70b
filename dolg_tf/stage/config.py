"""Stage configurations: frozen dataclasses that are at once command-line flags and JSON.

No TensorFlow here, so that `--help` and a mistyped flag answer at once.
"""

import dataclasses
import logging
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence

from absl import flags


class InputError(ValueError):
    """Bad input that the user can mend: commands print it as one line, without a traceback."""


def option(help: str, default=dataclasses.MISSING, *, unit: str = "", choices: Sequence[str] = ()):
    """Returns a dataclass field that is also a flag.

    Args:
      help: what it does, as `--help` prints it.
      default: the default value; without one the flag is required.
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
    kind, words = _KINDS[hint]
    fits = isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
    # Neither NaN, nor infinite, nor a whole number too large for a float.
    if not fits or (hint is float and not abs(value) <= sys.float_info.max):
        raise InputError(f"{source}: {name} is {value!r:.60}; it must be {words}")
    return value


# --- dataclasses <-> flags -----------------------------------------------------------


def _options(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def _element(hint) -> type | None:
    """Returns T of `tuple[T, ...]`, None for other types."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def define_flags(*classes: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each option of the dataclasses."""
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in _options(cls):
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
                    int: flags.DEFINE_integer,
                    float: flags.DEFINE_float,
                    str: flags.DEFINE_string,
                }[hint]
                define(name, default, help, **common)


def from_flags(cls: type, values: flags.FlagValues = flags.FLAGS):
    """Returns `cls` from the parsed flags.

    Raises:
      InputError: on a required flag without value, a list element of the wrong type, or a
        value with an inline comment (absl takes `#` for a comment only in the first column).
    """
    hints, kwargs = typing.get_type_hints(cls), {}
    for field in _options(cls):
        name, value = field.name, values[field.name].value
        if value is None:
            raise InputError(f"--{name} is required: {field.metadata['help']}")
        if isinstance(value, str) and " #" in value:
            raise InputError(
                f"--{name}={value!r}: a flagfile takes comments only on lines of their own"
            )
        element = _element(hints[name])
        if element is not None:
            try:
                value = tuple(element(x) for x in value)
            except ValueError as error:
                raise InputError(f"--{name}={','.join(value)}: {error}") from error
        kwargs[name] = value
    return cls(**kwargs)


def to_flagfile(*configs) -> str:
    """Returns the text of a flagfile that gives these configurations again."""
    lines = []
    for config in configs:
        for field in _options(type(config)):
            value = getattr(config, field.name)
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{field.name}")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                lines.append(f"--{field.name}={text}")
    return "\n".join(lines) + "\n"


def _help_text(program: str, doc: str, classes: Sequence[type]) -> str:
    lines = [f"usage: {program} [--flagfile=FILE] [--flag=value ...]", ""]
    if doc:
        lines += [doc.strip().split("\n\n")[0], ""]
    for cls in classes:
        # Those that must be given first, also when a stage inherits others.
        for field in sorted(_options(cls), key=lambda f: f.default is not dataclasses.MISSING):
            meta = field.metadata
            if field.default is dataclasses.MISSING:
                default = "required"
            else:
                value = field.default
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                default = f"default {text or 'empty'}"
            notes = [default] + ([meta["unit"]] if meta["unit"] else [])
            if meta["choices"]:
                notes.append("one of " + ", ".join(meta["choices"]))
            text = f"{meta['help']} ({'; '.join(notes)})"
            lines.append(f"  --{field.name}")
            lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _program() -> str:
    """Returns the command as the user typed it, without flags."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python {sys.argv[0]}" if spec is None else f"python -m {spec.name}"


def commands(stages: dict[str, tuple[Callable, type]]) -> typing.NoReturn:
    """Runs the stage that the first argument names, as `main` does, and exits.

    Args:
      stages: the name, stage and configuration of each.
    """
    program, name = _program(), sys.argv[1] if len(sys.argv) > 1 else ""
    if name in stages:
        del sys.argv[1]
        _run(f"{program} {name}", *stages[name])
    if name.lstrip("-") not in ("help", "h"):
        names = ", ".join(stages)
        sys.exit(f"{program}: error: the first argument is {name!r}; it must be one of {names}")
    lines = [f"usage: {program} COMMAND [--flag=value ...]", ""]
    for name, (stage, _) in stages.items():
        lines.append(f"  {name:<10}{stage.__doc__.strip().splitlines()[0]}")
    print("\n".join([*lines, "", f"{program} COMMAND --help lists the flags of a command."]))
    sys.exit(0)


def main(stage: Callable, *classes: type) -> typing.NoReturn:
    """Runs `stage(*configs)` as a command and exits.

    Flags are defined here and nowhere else, so importing a stage defines none. Exit codes:
    0 done, 1 bad input or a failure, 130 interrupted.
    """
    _run(_program(), stage, *classes)


def _run(program: str, stage: Callable, *classes: type) -> typing.NoReturn:
    define_flags(*classes)
    flags.DEFINE_bool("help", False, "show this help", short_name="h")
    # oneDNN's convolutions are the faster ones on processors without AVX-512 too, where
    # TensorFlow leaves them off; and TensorFlow's own chatter is no answer to the user.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if flags.FLAGS.help:
            print(_help_text(program, stage.__doc__ or "", classes))
            sys.exit(0)
        if rest:
            raise InputError(f"{rest[0]!r} is no flag; write --name=value")
        stage(*(from_flags(cls) for cls in classes))
    except (flags.Error, InputError, FloatingPointError, OSError) as error:
        message = " ".join(str(error).split())
        sys.exit(f"{program}: error: {message}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
