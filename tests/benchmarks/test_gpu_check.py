"""The check of a GPU, as far as it goes without one."""

import subprocess
import sys

import gpu_check
import pytest
import stages

WORK = {
    "work": "inference",
    "best": 0.05,
    "median": 0.0625,
    "memory": 3.456e9,
    "rate": 2e13,
    "peaks": {"matrix product, 8192 cubed": 4e13, "3x3 convolution, 512 channels": 1e13},
}


def _page(path):
    begin, end = stages.marks(gpu_check.BLOCK)
    path.write_text(f"{begin}\nNot measured.\n{end}\n")
    return path


def test_tensorflow_is_measured_where_it_sees_a_gpu_and_jax_where_only_jax_does():
    assert gpu_check.choose({"tensorflow": ("2", "A"), "jax": ("1", "A")}) == "tensorflow"
    assert gpu_check.choose({"tensorflow": ("2", ""), "jax": ("1", "A")}) == "jax"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({}, "no GPU: TensorFlow 2.21 sees none, JAX is not installed; pip install 'tensorflow["),
        ({"jax": ("JAX 0.10", "")}, "no GPU: TensorFlow 2.21 sees none, JAX 0.10 sees none; pip"),
    ],
)
def test_without_a_gpu_one_line_says_so_and_the_page_stays(tmp_path, monkeypatch, seen, words):
    page = _page(tmp_path / "page.md")
    before = page.read_text()
    monkeypatch.setattr(gpu_check, "look", lambda: {"tensorflow": ("TensorFlow 2.21", ""), **seen})
    monkeypatch.setattr(gpu_check, "start", None)  # nothing else is begun
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", f"--output={page}"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main()
    assert str(stopped.value.code).startswith(words) and "\n" not in stopped.value.code
    assert page.read_text() == before


def test_a_trial_on_a_backend_that_is_missing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "look", lambda: {"tensorflow": ("TensorFlow 2.21", "")})
    words = ["gpu_check.py", "--quick", "--backend=jax", f"--output={_page(tmp_path / 'page.md')}"]
    monkeypatch.setattr(sys, "argv", words)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")  # which it sets
    with pytest.raises(SystemExit, match="--backend=jax: it cannot be imported; pip install jax"):
        gpu_check.main()


@pytest.mark.parametrize(
    ("megabytes", "photos"),
    [(0, 4), (8_192, 4), (11_264, 8), (16_384, 16), (24_576, 16), (81_559, 32)],
)
def test_a_step_takes_as_many_photos_as_the_memory_holds(megabytes, photos):
    assert gpu_check.photos_for(megabytes) == photos


@pytest.mark.parametrize(
    ("name", "error", "cosine", "verdict"),
    [
        ("float32, exact products", 3e-6, 1.0, "held"),
        ("float32, exact products", 2e-4, 1.0, "**missed**"),
        ("float32", 2e-3, 0.5, ""),  # what the backend does by itself has no bar
        ("bfloat16", 0.1, 0.9995, "held"),
        ("bfloat16", 0.1, 0.99, "**missed**"),
        ("bfloat16", float("nan"), float("nan"), "**missed**"),
    ],
)
def test_golden_numbers_have_a_bar(name, error, cosine, verdict):
    row = gpu_check.golden_row({"golden": name, "error": error, "cosine": cosine})
    assert row.endswith(f"| {verdict} |")


def test_a_work_is_told_beside_the_faster_peak():
    rows = gpu_check.rows_of(WORK, "bfloat16", 8)
    assert rows[0] == "| inference | bfloat16 | 8 | 50.0 | 62.5 | 160.0 | 40 | 50% | 3.46 |"
    cells = [cell.strip() for cell in rows[1].split("|")[1:-1]]
    assert cells == ["matrix product, 8192 cubed", "bfloat16", *[""] * 4, "80", "100%", ""]
    golden = {"golden": "bfloat16", "error": 1e-2, "cosine": 0.9999}
    lines = gpu_check.table("A GPU", {"bfloat16": [golden, WORK]}, 8, {"bfloat16": "no memory"})
    assert lines[0] == "A GPU" and lines[-1] == "\nbfloat16: stopped, no memory"


def test_what_was_measured_before_the_time_was_over_is_kept(tmp_path, monkeypatch):
    script = tmp_path / "works.py"
    script.write_text("import time\nprint('words\\n{\"a\": 1}', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu_check, "_SCRIPT", script)
    assert gpu_check.measure("jax", "float32", [], 1) == ([{"a": 1}], "the time was over")
    script.write_text("import sys\nprint('{\"a\": 2}', flush=True)\nsys.exit('out of memory')\n")
    assert gpu_check.measure("jax", "float32", [], 60) == ([{"a": 2}], "out of memory")


@pytest.mark.slow
def test_the_check_from_end_to_end_on_the_cpu(tmp_path):
    page = _page(tmp_path / "page.md")
    command = [sys.executable, gpu_check.__file__, "--quick", f"--output={page}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = stages.read_block(page, gpu_check.BLOCK)
    assert lines[0].startswith("CPU, TensorFlow 2.")
    assert sum("| held |" in line for line in lines) == 2
    for work in ("inference", "training step"):
        assert sum(line.startswith(f"| {work} |") for line in lines) == 2
