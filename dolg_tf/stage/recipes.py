"""The recipes: flagfiles of the folder `configs/`, which an installed package brings along."""

import pathlib


def find_recipes() -> dict[str, pathlib.Path]:
    """Returns the flagfiles of all recipes, by name."""
    package = pathlib.Path(__file__).parents[1]
    # Beside the package in a checkout, inside it when it is installed.
    for folder in (package / "configs", package.parent / "configs"):
        found = sorted(folder.glob("*.flags"))
        if found:
            return {path.stem: path for path in found}
    return {}


def flagfile(name_or_path: str) -> str:
    """Returns the flagfile of a recipe, or the path that is given instead of a name."""
    return str(find_recipes().get(name_or_path, name_or_path))
