"""TensorFlow's own lines on the terminal, kept away from the user.

TensorFlow writes to the standard error stream while it is imported and when it first looks for
devices ("Could not find cuda drivers", "failed call to cuInit"), before any logging is set up, and
no setting silences it. So for that time the file descriptor leads to a process that passes on all
lines but those, at once: what TensorFlow says before it aborts is not lost.
"""

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Information and warnings of absl's C++ logging, what says of a machine that it has no GPU, and an
# "error" of oneDNN's after which it does what was asked for in another way.
_CHATTER = (
    r"WARNING: All log messages before absl::InitializeLog"
    r"|[IW]\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    r"|.*(failed call to cuInit|[Cc]ould not find cuda drivers|CUDA_ERROR_NO_DEVICE"
    r"|Unable to register cu\w+ factory|computation placer already registered"
    r"|kernel driver does not appear to be running|no NVIDIA GPU device is present)"
    r"|To enable the following instructions: |.*oneDNN supports DT_\w+ only on"
)
_turn = threading.Lock()  # of the block that has led the descriptor elsewhere
_FILTER = """
import re, sys
chatter = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if line.strip() and not chatter.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def hush_tensorflow() -> None:
    """Keeps TensorFlow's chatter away, from its import on, unless the user asks for it.

    They do by a log level of 0 or 1. Nothing is imported here; the next `import tensorflow`,
    wherever it stands, is quiet.
    """
    if os.environ.setdefault(_LEVEL, "2") in ("0", "1"):
        return
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietImport())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps away the chatter of a block that loads TensorFlow's C library, as of an import."""
    if os.environ.get(_LEVEL, "0") in ("0", "1"):
        yield
    else:
        with _without_chatter():
            yield


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Filters what the block writes to file descriptor 2; where there is none, does nothing."""
    with _turn:
        try:
            sys.stderr.flush()
            terminal = os.dup(2)
        except (AttributeError, OSError, ValueError):  # started with a closed stderr
            yield
            return
        # In a session of its own, so that Ctrl-C ends the command and not its last words.
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER, _CHATTER],
            stdin=subprocess.PIPE,
            stderr=terminal,
            start_new_session=True,
        ) as filtering:
            os.dup2(filtering.stdin.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(terminal, 2)
                os.close(terminal)


class _QuietImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds TensorFlow as the other finders do, and imports it quietly, once."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        with _without_chatter():
            self._loader.exec_module(module)
            module.config.list_physical_devices()  # the first look for devices says the rest
