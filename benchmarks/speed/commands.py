"""The commands of the project, and how to run them."""

import pathlib
import subprocess
import sys

from dolg_tf.cli import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]


def list_commands() -> list[list[str]]:
    """Returns every command of the project, as the words after `python`, without flags."""
    doors = [
        "train.py",
        *(f"export/{path.name}" for path in sorted((ROOT / "export").glob("*.py"))),
    ]
    return [[door] for door in doors] + [["-m", "dolg_tf", *name.split()] for name in COMMANDS]


def run_python(*words: str) -> None:
    """Runs Python in the repository's root.

    Raises:
      RuntimeError: when it fails, with the last line of its log.
    """
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
