"""A stage run as a command: flags in, an exit code out."""

import contextlib
import inspect
import logging
import os
import pathlib
import select
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    with exit_code(program):
        words = _read_flagfiles(with_recipe(arguments, recipes or {}))
        rest = flags.FLAGS([program, *words])[1:]
        if flags.FLAGS.help:
            print(_help_text(program, stage.__doc__ or "", classes, recipes or {}))
        elif rest:
            raise InputError(f"{rest[0]!r} is not a flag; write --name=value")
        else:
            stage(*(from_flags(cls) for cls in classes))
    sys.exit(0)


@contextlib.contextmanager
def exit_code(program: str) -> Iterator[None]:
    """Turns what the block raises into one line on the terminal and an exit code.

    Args:
      program: the command as the user typed it.
    """
    try:
        yield
        sys.stdout.flush()
    except (flags.Error, InputError, FloatingPointError, OSError) as error:
        if _stdout_is_lost() and isinstance(error, BrokenPipeError):
            sys.exit(1)  # whoever read the output has gone: `dolg ... | head`
        message = " ".join(str(error).removeprefix("ERROR:: ").split())
        sys.exit(f"{program}: error: {message}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def _stdout_is_lost() -> bool:
    """Returns whether standard output cannot be written; then what is left of it is dropped."""
    try:
        sys.stdout.flush()
        reader = select.poll()
        reader.register(1, 0)
        if not reader.poll(0):  # unbuffered, there is nothing to flush
            return False
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def with_recipe(arguments: Sequence[str], recipes: Mapping[str, pathlib.Path]) -> list[str]:
    """Returns the arguments with `--recipe=NAME` replaced by its flagfile.

    Raises:
      InputError: when there is no such recipe.
    """
    found, words = [], iter(arguments)
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if recipes and word.startswith("-") and name == "recipe":
            value = value or next(words, "")
            if value not in recipes:
                known = ", ".join(recipes)
                wrong = f"--recipe={value} is unknown; it must be"
                if not value or value.startswith("-"):
                    wrong = "--recipe needs a name:"
                raise InputError(f"{wrong} one of {known}")
            word = f"--flagfile={recipes[value]}"
        found.append(word)
    return found


def _read_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the lines of flagfiles in their place.

    Read once, since a flagfile may be a pipe. `--flag=value # comment` in a flagfile is refused:
    absl would take the comment for value. On the command line ` #` is part of the value, and so it
    is on a line of a flagfile that holds the value alone; see `config.to_flagfile`.
    """
    words = flags.FLAGS.read_flags_from_files(list(arguments))
    for word in words:
        if word.startswith("-") and " #" in word and word not in arguments:
            raise InputError(f"{word!r}: a flagfile takes comments only on lines of their own")
    return words


def _help_text(
    program: str, doc: str, classes: Sequence[type], recipes: Mapping[str, pathlib.Path]
) -> str:
    usage = f"usage: {program} [--flagfile=FILE] [--flag=value ...]"
    lines = [usage.replace(" [--flag=", " [--recipe=NAME] [--flag=") if recipes else usage, ""]
    if doc:
        lines += [inspect.cleandoc(doc).split("\n\n")[0], ""]
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
