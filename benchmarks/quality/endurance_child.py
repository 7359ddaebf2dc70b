"""A process that may die of what it is asked, and what became of an attack: for `endurance.py`."""

import dataclasses
import multiprocessing
import os
import pathlib
from collections.abc import Callable

from dolg_tf.stage import processes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one attack: `kind` is a column of the table, "other" is in none."""

    kind: str
    words: str = ""


def begin_child(log: pathlib.Path) -> None:
    """Has this process end with its parent, and write what it prints to the end of a file."""
    processes.end_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)


class Child:
    """A process that answers one question after the other, started again when it died or hung.

    Args:
      work: its main function, which takes a pipe and the arguments.
      arguments: of that function, after the pipe.
    """

    def __init__(self, work: Callable, *arguments):
        self._work, self._arguments, self._process = work, arguments, None

    def start(self) -> None:
        """Starts the process."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(
            target=self._work, args=(other, *self._arguments), daemon=True
        )
        self._process.start()
        other.close()

    def _ask(self, question, patience: float):
        """Returns the answer, or an Outcome when none comes within so many seconds."""
        if self._process is None:
            self.start()
        try:
            self._pipe.send(question)
            if self._pipe.poll(patience):
                return self._pipe.recv()
            outcome = Outcome("hang", f"no answer in {patience:.0f} s")
        except (EOFError, OSError):
            self._process.join()
            outcome = Outcome("crash", f"exit code {self._process.exitcode}{self._last_words()}")
        self.close()
        return outcome

    def _last_words(self) -> str:
        """Returns what is told of a process that died, after its exit code."""
        return ""

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None
