"""The pure parts of benchmarks/speed: timing in turn, tables that keep other rows, slopes."""

import ast
import os
import pathlib
import subprocess
import sys
import time

import growth
import numpy as np
import pytest
import stages
from commands import list_commands
from stage_cases import Case
from timing import Timer

BENCHMARKS = pathlib.Path(stages.__file__).parent
FOUND = {"work": "much", "best": 1.5, "median": 2.0, "floor": 0.75, "memory": 3e9}


def _page(path, lines):
    begin, end = stages.marks("stages")
    path.write_text("\n".join(["# Title", "", begin, *lines, end, "", "more words", ""]))
    return path


# --- time and memory --------------------------------------------------------------------------


def test_functions_take_turns_and_the_warm_up_does_not_count():
    called, timer = [], Timer()
    timer.add("a", called.append, "a")
    timer.add("b", called.append, "b")
    timer.run(2)
    assert "".join(called) == "ababab"
    assert len(timer.seconds["a"]) == len(timer.seconds["b"]) == 2
    timer.run(1, warm_up=False)
    assert "".join(called) == "abababab" and len(timer.seconds["a"]) == 3


def test_best_and_median_of_the_rounds():
    timer = Timer()
    timer.seconds["a"] = [(5.0, 9.0), (1.0, 8.0), (4.0, 3.0)]
    np.testing.assert_array_equal(timer.least("a"), [1, 3])
    assert timer.median("a") == 4


def test_memory_is_that_of_the_peak_since_the_restart():
    # In a process of its own: elsewhere, what was freed before decides what is freed.
    code = """if True:
        import time
        import numpy as np
        from timing import OwnMemory, peak_memory, restart_peak_memory, status

        size = 64_000_000
        large = np.ones(size, np.uint8)
        before = peak_memory()
        assert before > large.nbytes
        del large
        restart_peak_memory()
        assert peak_memory() < before - size // 2
        held, watched = status("RssAnon"), OwnMemory()
        large = np.ones(size, np.uint8)
        time.sleep(0.5)
        assert watched.stop() > held + size // 2 and large[0]
    """
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_slowest_call_and_the_least_floor_count():
    called = []
    calls = {"quick": lambda: None, "slow": lambda: (called.append(1), time.sleep(0.02))}
    floors = [(lambda: time.sleep(0.001), 1000), (lambda: time.sleep(0.005), 2)]
    found = stages.measure(Case("two", calls, floors, rounds=3))
    assert found["work"] == "two; slowest `slow`" and len(called) == 4
    assert 0.02 <= found["best"] <= found["median"]
    assert 0.01 <= found["floor"] < 1 and found["memory"] > 1e6
    called.clear()
    stages.measure(Case("once", calls, floors, rounds=1))
    assert len(called) == 1


# --- the table of stages ----------------------------------------------------------------------


def test_a_row_says_best_median_floor_ratio_and_memory():
    assert stages.table_row("search", FOUND) == (
        "| search | much | 1.5 | 2 | 0.75 | 2.00 | 3.00 | `make bench ONLY=search` |"
    )
    assert "**failed**" in stages.table_row("search", None)
    assert stages.HEADER.count("|") == stages.table_row("search", None).count("|") == 9


def test_rows_that_are_not_run_again_are_kept_in_the_order_of_stages(tmp_path):
    rows = {name: stages.table_row(name, FOUND) for name in ("search", "records")}
    page = _page(tmp_path / "page.md", stages.table("2 cores", 100.2, rows))
    kept = stages.kept_rows(stages.read_block(page, "stages"))
    assert kept == rows
    kept["search"] = stages.table_row("search", None)
    stages.write_block(page, "stages", stages.table("2 cores", 90, kept))
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- stages: begin -->\n2 cores; 90 GFLOP/s")
    assert text.endswith("<!-- stages: end -->\n\nmore words\n")
    assert text.index(rows["records"]) < text.index(kept["search"])
    assert rows["search"] not in text and text.count("\n- search: the matrix product") == 1


@pytest.mark.parametrize("text", ["none", "<!-- stages: end -->\n<!-- stages: begin -->"])
def test_a_page_without_the_block_is_refused(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match="must be a file with the lines '<!-- stages: begin"):
        stages.write_block(tmp_path / "page.md", "stages", [])
    assert (tmp_path / "page.md").read_text() == text


@pytest.mark.parametrize("script", [stages, growth])
def test_a_missing_page_is_an_error_in_one_line(script, tmp_path, monkeypatch, capsys):
    flag = "--output" if script is stages else "--readme"
    monkeypatch.setattr(stages, "measure_processor", lambda: ("2 cores", 100.0))
    monkeypatch.setattr(sys, "argv", [script.__file__, f"{flag}={tmp_path / 'missing.md'}"])
    with pytest.raises(SystemExit):
        script.main()
    assert "missing.md must be a file with the lines" in capsys.readouterr().err.splitlines()[-1]


def test_rows_of_another_processor_are_not_kept():
    lines = stages.table("2 cores, AVX2", 100, {})
    stages.check_processor(lines, "2 cores, AVX2")
    stages.check_processor([], "2 cores, AVX2")
    with pytest.raises(
        ValueError, match=r"on another processor .* has 2 cores, AVX2, AMX; run all"
    ):
        stages.check_processor(lines, "2 cores, AVX2, AMX")


def test_the_processor_is_described_without_its_name():
    processor, rate = stages.measure_processor()
    assert processor.split(" cores")[0].isdigit() and rate > 0
    assert set(processor.split(", ")[1:]) <= {"AVX2", "AVX-512", "AVX-512 BF16", "AMX"}


def test_a_stage_that_fails_is_told_and_the_others_run(tmp_path, monkeypatch):
    page = _page(tmp_path / "page.md", [])
    monkeypatch.setattr(stages, "measure_processor", lambda: ("2 cores", 100.0))
    monkeypatch.setattr(stages, "run_alone", lambda name, _: None if name == "index" else FOUND)
    monkeypatch.setattr(sys, "argv", ["stages.py", f"--output={page}"])
    with pytest.raises(SystemExit, match="failed: index"):
        stages.main()
    rows = stages.kept_rows(stages.read_block(page, "stages"))
    assert [*rows] == [*stages.STAGES]
    assert [name for name, row in rows.items() if "failed" in row] == ["index"]


def test_an_unknown_stage_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stages.py", "--only=records,nonsense"])
    with pytest.raises(SystemExit):
        stages.main()
    assert "'nonsense' is unknown; choose from records,input" in capsys.readouterr().err


def test_commands_are_found():
    commands = [" ".join(words) for words in list_commands()]
    assert len(commands) == len(set(commands)) > 25
    assert {"train.py", "export/export_onnx.py", "-m dolg_tf draw"} <= set(commands)
    assert {
        "-m dolg_tf index query",
        "-m dolg_tf whiten fit",
    } <= set(commands)
    assert not {"-m dolg_tf.stage.files", "-m dolg_tf index"} & set(commands)


@pytest.mark.slow
def test_two_cheap_stages_from_end_to_end(tmp_path):
    page = _page(tmp_path / "page.md", [])
    command = [sys.executable, BENCHMARKS / "stages.py", "--quick", f"--output={page}"]
    for names in ("import,index", "import"):
        done = subprocess.run([*command, f"--only={names}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    rows = stages.kept_rows(stages.read_block(page, "stages"))
    assert [*rows] == ["index", "import"]
    for row in rows.values():
        best, floor, ratio = (float(row.split("|")[i]) for i in (3, 5, 6))
        assert ratio == pytest.approx(best / floor, rel=0.02) and best > 0


# --- growth -------------------------------------------------------------------------------------


def test_slopes_are_those_of_least_squares():
    counts = [1_000, 10_000, 100_000]
    assert growth.slope(counts, [2 * n**1.5 for n in counts]) == pytest.approx(1.5)
    values = [3.0, 20.0, 900.0]
    x, y = np.log10(counts), np.log10(values)
    wanted = (3 * (x * y).sum() - x.sum() * y.sum()) / (3 * (x * x).sum() - x.sum() ** 2)
    assert growth.slope(counts, values) == pytest.approx(wanted)


def test_growth_is_told_of_all_sizes_and_of_the_last_step():
    seconds, peak = (1, 2, 20), (101e6, 110e6, 200e6)
    found = {
        "search": {
            10**power: {"seconds": s, "before": 100e6, "peak": p}
            for power, s, p in zip((3, 4, 5), seconds, peak, strict=True)
        }
    }
    lines = growth.table(found)
    assert "| search | 10,000 | 2 | 100 | 110 |" in lines
    assert lines[-1] == "| search | 0.65 | 1.00 | 0.15 | 0.26 | 1.00 |"


def test_measured_work_is_repeated_while_it_is_short(monkeypatch):
    rounds = []
    found = growth.measure(rounds.append)
    assert rounds == [0, 1, 2] and found["peak"] >= found["before"] > 1e6
    monkeypatch.setattr(growth, "ENOUGH", 0.0)
    growth.measure(rounds.append)
    assert rounds == [0, 1, 2, 0]


def test_the_plot_is_written(tmp_path):
    of = {"seconds": 1.0, "before": 1, "peak": 10**8}
    growth.write_plot(tmp_path / "growth.png", {"search": {10: of, 100: of}})
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


# --- the scripts and README.md -----------------------------------------------------------------


def test_scripts_import_only_neighbours_of_their_own_folder():
    # Python finds the modules beside a script; pytest is told of both folders.
    scripts = list(BENCHMARKS.parent.glob("*/*.py"))
    lost = [
        (path.name, name)
        for path in scripts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name in {other.stem for other in scripts if other.parent != path.parent}
    ]
    assert len(scripts) > 20 and not lost


def test_the_page_tells_of_every_script_and_has_both_tables():
    text = stages.README.read_text(encoding="utf-8")
    scripts = {path.name for path in BENCHMARKS.parent.glob("*/*.py")}
    assert {name for name in scripts if f"`{name}`" not in text} == set()
    for block in ("stages", "growth", "beside_torch", "gpu"):
        stages.read_block(stages.README, block)
    assert os.environ.get("HOME", "/root") not in text
