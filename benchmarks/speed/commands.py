"""The commands of the project, as its files tell of them, and Python to run them."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def list_commands() -> list[list[str]]:
    """Returns the words behind `python` of every command of the project, without flags."""
    found = []
    packages = sorted((ROOT / "dolg_tf").rglob("*.py"))
    for path in (ROOT / "train.py", *sorted((ROOT / "export").glob("*.py")), *packages):
        name = path.relative_to(ROOT).as_posix()
        words = [name]
        if name.startswith("dolg_tf"):
            words = ["-m", name.removesuffix(".py").replace("/", ".")]
        found += [[*words, *command] for command in _commands_of(path)]
    return found


def _commands_of(path: pathlib.Path) -> list[list[str]]:
    """Returns [] of a module that is no command, [[]] of one, [["build"], ...] of several."""
    text = path.read_text(encoding="utf-8")
    if 'if __name__ == "__main__":' not in text:
        return []
    main = ast.parse(text).body[-1]
    calls = [node for node in ast.walk(main) if isinstance(node, ast.Call)]
    several = [call for call in calls if getattr(call.func, "attr", "") == "commands"]
    return [[key.value] for call in several for key in call.args[0].keys] or [[]]


def run_python(*words: str) -> None:
    """Runs Python in the repository's root.

    Raises:
      RuntimeError: when it fails, with its last line.
    """
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
