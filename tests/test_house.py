"""The house stays one that a stranger knows: few rooms, few arrows, no hallways."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
    *(ROOT / "dolg_tf").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(ROOT / "export").glob("*.py"),
    ROOT / "train.py",
]
# A room is a folder of the package or a module at its root, with all below it.
DOORS = {"__init__", "__main__"}


def _room(parts: tuple[str, ...]) -> str:
    return parts[1] if parts[0] == "dolg_tf" else parts[0]


def _imported(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dolg_tf"):
            parts = node.module.split(".")
            names = [parts[1]] if parts[1:] else [alias.name for alias in node.names]
            rooms.update(names)
    return rooms


def test_rooms_and_arrows_are_few():
    rooms, arrows = set(), set()
    for path in FILES:
        room = _room(path.relative_to(ROOT).with_suffix("").parts)
        if room not in DOORS:
            rooms.add(room)
            arrows |= {(room, other) for other in _imported(path) if other not in {room, *DOORS}}
    assert len(rooms) <= 16 and len(arrows) < 50


def test_no_folder_is_a_hallway_and_no_module_a_scroll():
    for path in (ROOT / "dolg_tf").rglob("*.py"):
        siblings = [other for other in path.parent.glob("*.py") if other.stem not in DOORS]
        assert len(siblings) <= 12, path.parent
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:dolg_tf|tests)/[\w/.]+)`", text)
    assert len(named) > 20 and all((ROOT / name).exists() for name in named)
    assert len([line for line in text.splitlines() if line.startswith("| a")]) == 10
