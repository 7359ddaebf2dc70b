"""How a command ends when it is told to: at Ctrl-C, at SIGTERM, and with its parent.

A command installs this before it imports anything else, so that no signal meets half an import:
Python, NumPy and TensorFlow swallow an exception there, or make another one of it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

PARENT = "DOLG_PARENT"  # variable with the process with which a command ends, whatever ends it
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever tidies up at Ctrl-C does it then, too."""


class _State:
    program = "dolg"
    working = False  # whether there is something to tidy up
    received = 0


def install(program: str) -> None:
    """Makes Ctrl-C and SIGTERM end this process in one line, with exit code 130 and 143.

    A signal that whoever started the command has switched off stays so.

    Args:
      program: the command as the user typed it.
    """
    _State.program = program
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    parent = os.environ.pop(PARENT, "")
    if parent:
        _end_with(int(parent))


@contextlib.contextmanager
def working(program: str) -> Iterator[None]:
    """Lets signals raise KeyboardInterrupt in the block, so that it can tidy up.

    Args:
      program: the command as the user typed it.
    """
    _State.program, _State.working = program, True
    try:
        yield
    finally:
        _State.working = False


def received() -> int:
    """Returns the signal that this process was told to end by; 0: none."""
    return _State.received


def tell(number: int) -> int:
    """Says in one line which signal ends this process, and returns the exit code."""
    # RuntimeError: the signal came while standard output was being written.
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{_State.program}: {_WORDS[number]}\n".encode())
    return 128 + number


def _receive(number: int, frame) -> None:
    _State.received = number
    if not _State.working or _importing(frame):
        os._exit(tell(number))
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _importing(frame) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent ends, even if that is killed."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)
