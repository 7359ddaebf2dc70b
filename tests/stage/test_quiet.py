"""TensorFlow's chatter stays away from the terminal, and nothing else does."""

import os
import subprocess
import sys

import pytest

NOISY = """
import os
os.write(2, b"I0000 00:00:17.1 42 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"2026-01-01 00:00:00.1: I tensorflow/core/platform/cpu_feature_guard.cc:210] This\\n")
os.write(2, b"E0000 00:00:17.1 42 cuda.cc:1] failed call to cuInit: INTERNAL\\n")
os.write(2, b"E0000 00:00:17.1 42 util.cc:131] oneDNN supports DT_UINT8 only on platforms with\\n")
os.write(2, b"libcudart.so.12: version mismatch, reinstall it\\n")

class config:
    @staticmethod
    def list_physical_devices():
        os.write(2, b"2026-01-01 00:00:00.1: I x.cc:31] Could not find cuda drivers\\n")
"""


@pytest.fixture
def run(tmp_path):
    """Function of a program and variables to the finished process, with a noisy TensorFlow."""
    (tmp_path / "tensorflow.py").write_text(NOISY)

    def finish(program, **variables):
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**kept, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
        )

    return finish


IMPORT = """
import os
from dolg_tf.stage import quiet
quiet.hush_tensorflow()
import tensorflow
assert tensorflow.config.list_physical_devices.__name__
os.write(2, b"I0000 after\\n")
"""


def test_only_what_is_no_chatter_is_given_back(run):
    done = run(IMPORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "libcudart.so.12: version mismatch, reinstall it\nI0000 after\n"


def test_who_asks_for_it_sees_it(run):
    assert "oneDNN" in run(IMPORT, TF_CPP_MIN_LOG_LEVEL="0").stderr


def test_a_library_is_loaded_as_quietly(run):
    program = IMPORT.replace("import tensorflow", "with quiet.quietly():\n    import tensorflow")
    program = program.replace("quiet.hush_tensorflow()\n", "")
    assert run(program, TF_CPP_MIN_LOG_LEVEL="2").stderr.startswith("libcudart")
    assert run(program).stderr.startswith("I0000")


def test_an_import_that_fails_says_why(run, tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'why\\n')\nraise ImportError('x')"
    )
    done = run(IMPORT)
    assert done.returncode == 1 and done.stderr.startswith("why\n")
    assert "ImportError: x" in done.stderr


def test_the_last_words_of_a_crash_are_not_lost(run, tmp_path):
    dying = "import os\nos.write(2, b'F0000 why\\nI0000 00:00:17.1 4 x\\n')\nos.abort()"
    (tmp_path / "tensorflow.py").write_text(dying)
    done = run(IMPORT)
    assert done.returncode == -6 and done.stderr == "F0000 why\n"


def test_without_a_terminal_it_imports_all_the_same(run, tmp_path):
    (tmp_path / "tensorflow.py").write_text(NOISY.replace("os.write(2", "os.write(1"))
    done = run("import os\nos.close(2)\n" + IMPORT.replace("os.write(2", "os.write(1"))
    assert done.returncode == 0 and "after" in done.stdout
