"""A stage run as a command: flags in, an exit code out."""

import logging
import os
import pathlib
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from dolg_tf.stage import quiet
from dolg_tf.stage.config import InputError, default_text, define_flags, from_flags, options


def main(stage: Callable, *classes: type) -> typing.NoReturn:
    """Runs `stage(*configs)` as a script of its own, with the flags of `sys.argv`, and exits."""
    run(f"python {sys.argv[0]}", stage, classes, sys.argv[1:])


def run(
    program: str,
    stage: Callable,
    classes: Sequence[type],
    arguments: Sequence[str],
    recipes: Mapping[str, pathlib.Path] | None = None,
) -> typing.NoReturn:
    """Runs `stage(*configs)` with flags from the command line and exits.

    Exit codes: 0 done, 1 bad input or a failure, 130 interrupted.

    Args:
      program: the command as the user typed it, without flags.
      stage: the function that does the work; its docstring opens the help.
      classes: the configuration dataclasses that it takes, in order.
      arguments: the flags.
      recipes: flagfiles that `--recipe` takes by name; None: the command has no recipes.
    """
    define_flags(*classes)
    flags.DEFINE_bool("help", False, "show this help", short_name="h")
    # oneDNN's convolutions are the faster ones on processors without AVX-512 too, where
    # TensorFlow leaves them off.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    quiet.hush_tensorflow()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments = with_recipe(arguments, recipes or {})
        _refuse_inline_comments(arguments)
        rest = flags.FLAGS([program, *arguments])[1:]
        if flags.FLAGS.help:
            print(_help_text(program, stage.__doc__ or "", classes, recipes or {}))
            sys.exit(0)
        if rest:
            raise InputError(f"{rest[0]!r} is not a flag; write --name=value")
        stage(*(from_flags(cls) for cls in classes))
    except BrokenPipeError:  # whoever read the output has gone: `dolg ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (flags.Error, InputError, FloatingPointError, OSError) as error:
        message = " ".join(str(error).split())
        sys.exit(f"{program}: error: {message}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def with_recipe(arguments: Sequence[str], recipes: Mapping[str, pathlib.Path]) -> list[str]:
    """Returns the arguments with `--recipe=NAME` replaced by its flagfile."""
    found, words = [], iter(arguments)
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if recipes and word.startswith("-") and name == "recipe":
            value = value or next(words, "")
            if value not in recipes:
                known = ", ".join(recipes)
                raise InputError(f"--recipe={value} is unknown; it must be one of {known}")
            word = f"--flagfile={recipes[value]}"
        found.append(word)
    return found


def _refuse_inline_comments(arguments: Sequence[str]) -> None:
    """Refuses `--flag=value # comment` in a flagfile: absl would take the comment for value.

    On the command line, ` #` is part of the value. So it is on a line of a flagfile that holds
    the value alone; see `config.to_flagfile`.
    """
    for word in flags.FLAGS.read_flags_from_files(list(arguments)):
        if word.startswith("-") and " #" in word and word not in arguments:
            raise InputError(f"{word!r}: a flagfile takes comments only on lines of their own")


def _help_text(
    program: str, doc: str, classes: Sequence[type], recipes: Mapping[str, pathlib.Path]
) -> str:
    usage = f"usage: {program} [--flagfile=FILE] [--flag=value ...]"
    lines = [usage.replace(" [--flag=", " [--recipe=NAME] [--flag=") if recipes else usage, ""]
    if doc:
        lines += [doc.strip().split("\n\n")[0], ""]
    if recipes:
        text = f"the flags of a recipe, which later flags override (one of {', '.join(recipes)})"
        lines += ["  --recipe", *_wrapped(text)]
    for cls in classes:
        # Those that must be given first, also when a stage inherits others.
        for field in sorted(options(cls), key=lambda field: default_text(field) != "required"):
            meta, default = field.metadata, default_text(field)
            notes = [default] + ([meta["unit"]] if meta["unit"] else [])
            if meta["choices"]:
                notes.append("one of " + ", ".join(meta["choices"]))
            lines += [f"  --{field.name}", *_wrapped(f"{meta['help']} ({'; '.join(notes)})")]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
