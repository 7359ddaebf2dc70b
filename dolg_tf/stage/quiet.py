"""TensorFlow's own lines on the terminal, kept away from the user.

TensorFlow writes to the standard error stream while it is imported and when it first looks for
devices ("Could not find cuda drivers", "failed call to cuInit"), before any logging is set up, and
no setting silences it. So the file descriptor is redirected for that time. What is not one of
those lines is given back.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Information and warnings of absl's C++ logging, and what says of a machine that it has no GPU.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    rb"|.*(failed call to cuInit|[Cc]ould not find cuda drivers|CUDA_ERROR_NO_DEVICE"
    rb"|Unable to register cu\w+ factory|computation placer already registered"
    rb"|kernel driver does not appear to be running|no NVIDIA GPU device is present)"
    rb"|To enable the following instructions: "
)


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
def _kept_from_terminal() -> Iterator[None]:
    """Holds back what the block writes to file descriptor 2, then writes all but the chatter."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held:
                if line.strip() and not _CHATTER.match(line):
                    os.write(2, line)


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
        with _kept_from_terminal():
            self._loader.exec_module(module)
            module.config.list_physical_devices()  # the first look for devices says the rest
