"""What is installed: the recipes that come along, and packages that are optional."""

import importlib.metadata
import importlib.util
import pathlib
import shlex

from dolg_tf.stage.config import InputError

_PACKAGE = pathlib.Path(__file__).parents[1]


def find_recipes(command: str = "train") -> dict[str, pathlib.Path]:
    """Returns the flagfiles of the recipes of a command, by name; {} of one without recipes."""
    if command not in ("train", "train-how"):
        return {}
    # Beside the package in a checkout, inside it when it is installed.
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        found = sorted(folder.glob("*.flags"))
        if found:
            how = command == "train-how"
            return {path.stem: path for path in found if path.stem.startswith("how_") == how}
    return {}


def find_recipe(name_or_path: str) -> str:
    """Returns the flagfile of a recipe, or the path that is given instead of a name.

    Raises:
      InputError: when it is neither.
    """
    recipes = find_recipes()
    if name_or_path not in recipes and not pathlib.Path(name_or_path).is_file():
        raise InputError(
            f"{name_or_path!r} is neither a recipe ({', '.join(recipes)}) nor a flagfile"
        )
    return str(recipes.get(name_or_path, name_or_path))


def need(extra: str, purpose: str, *packages: str) -> None:
    """Checks that the packages of an extra are installed, without importing them.

    Args:
      extra: its name in pyproject.toml.
      purpose: what needs them, as the error begins: "pictures".
      packages: as they are imported.

    Raises:
      InputError: naming the missing ones and the command that installs them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        raise InputError(f"{purpose}: {names} {verb} missing; {install_command(extra)}")


def install_command(extra: str) -> str:
    """Returns the command that installs an extra: of this checkout, or the packages it names.

    Those, and not the package with its extra: a wheel may have come from no package index.
    """
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'"
    declared = importlib.metadata.requires("dolg_tf") or []
    marked = (line.partition(";") for line in declared)
    wanted = [name.strip() for name, _, marker in marked if f'extra == "{extra}"' in marker]
    return f"pip install {shlex.join(wanted)}"
