"""The comparison with PyTorch: its table, and that it says so where PyTorch is missing."""

import importlib.util
import subprocess
import sys

import beside_torch
import numpy as np
import pytest
import stages

FOUND = {
    "seconds": {
        "PyTorch": [(2.0, 4.0), (8.0, 4.5), (2.5, 5.0)],
        "ours": [(1.0, 3.6), (1.5, 1.8), (9, 3.4)],
    },
    "memory": {"PyTorch": 7.04e8, "ours": 1.25e9},
}
ROW = (
    "| R50, one photo, five scales | 2.5 | 1.5 | 0.60 | 0.76 | 0.70 | 1.25 | "
    "`python benchmarks/speed/beside_torch.py --only=r50_five` |"
)


def _page(path, lines=()):
    begin, end = stages.marks(beside_torch.BLOCK)
    path.write_text("\n".join([begin, *lines, end, ""]))
    return path


def test_a_row_says_medians_ratios_and_memory():
    assert beside_torch.table_row("r50_five", FOUND) == ROW
    assert beside_torch.HEADER.count("|") == ROW.count("|")


def test_rows_of_other_works_are_kept_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(beside_torch.importlib.metadata, "version", lambda name: "9.1")
    rows = {name: beside_torch.table_row(name, FOUND) for name in ("training", "r50_five")}
    lines = beside_torch.table("2 cores", 0.44, rows)
    assert lines[0].startswith("2 cores; torch 9.1, tensorflow 9.1. Load") and "0.4." in lines[0]
    assert lines[-2:] == [ROW, rows["training"]]
    assert beside_torch.kept_rows(lines) == rows


def test_without_pytorch_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["beside_torch.py", f"--output={tmp_path / 'page.md'}"])
    with pytest.raises(SystemExit):
        beside_torch.main()
    assert capsys.readouterr().err.splitlines()[-1].endswith("missing: pip install torch")


def test_answers_of_other_shapes_or_numbers_are_not_the_same(tmp_path, monkeypatch):
    rows = np.eye(2)
    assert beside_torch.difference(rows, rows + 0.25) == 0.25
    assert beside_torch.difference(rows, rows[:1]) == np.inf
    monkeypatch.setattr(beside_torch, "prepare", lambda *_: None)
    for kind, name in (("calls", "r50_one"), ("extraction", "extract_one")):
        for error in (2e-4, np.nan):
            monkeypatch.setattr(beside_torch, f"measure_{kind}", lambda *_, e=error: {"error": e})
            with pytest.raises(RuntimeError, match=f"{name}: the sides differ by .* than 0.0001"):
                beside_torch.measure(name, tmp_path, 1, True)


def test_a_side_that_fails_is_told():
    with pytest.raises(RuntimeError, match="exit code 3"):
        beside_torch.Server([sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(RuntimeError, match="no such thing"):
        beside_torch.timed([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install torch"
)
def test_both_sides_compute_the_same_on_the_smallest_network(tmp_path):
    page = _page(tmp_path / "page.md")
    command = [sys.executable, beside_torch.__file__, "--quick", "--rounds=1", f"--output={page}"]
    names = ["r50_one", "r50_five", "training", "extract_one"]
    done = subprocess.run([*command, f"--only={','.join(names)}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = beside_torch.kept_rows(stages.read_block(page, beside_torch.BLOCK))
    assert [*rows] == names
