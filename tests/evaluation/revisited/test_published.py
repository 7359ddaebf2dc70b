import dataclasses

import pytest

from dolg_tf.evaluation.revisited import published
from dolg_tf.retrieval.ground_truth import load_ground_truth

_PARTIAL = {  # rows of which only some scores are published
    "DELF-R-ASMK*",
    "R18-HOW, 1,000 features",
    "R50-HOW, 1,000 features",
    "R50-DELG + SP",
}


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_a_data_set_is_known_by_its_lists(ground_truths, name):
    task = load_ground_truth(ground_truths / f"gnd_{name}.pkl")
    assert published.dataset_of(dataclasses.replace(task, name="mine")) == name
    assert published.dataset_of(dataclasses.replace(task, index_ids=task.index_ids[1:])) is None
    assert published.dataset_of(dataclasses.replace(task, original=True)) is None


def test_rows_are_whole():
    tasks = [(name, n) for name in ("roxford5k", "rparis6k") for n in (0, 1_001_001)]
    for row in published.ROWS:
        assert set(row.percent) <= set(tasks) and row.source
        if row.method in _PARTIAL:
            continue
        assert list(row.percent) == tasks
        # Hard is harder than medium, and distractors cost.
        for name in ("roxford5k", "rparis6k"):
            alone, among = row.percent[name, 0], row.percent[name, 1_001_001]
            assert among[0] < alone[0] and among[1] < alone[1] < alone[0]
    by_name = {(row.method, row.cropped): row.percent for row in published.ROWS}
    assert len(by_name) == len(published.ROWS) == 16
    assert len(_PARTIAL & {row.method for row in published.ROWS}) == len(_PARTIAL)
    assert by_name["R101-DOLG, corrected", True]["roxford5k", 1_001_001] == (73.63, 51.57)
    assert by_name["R50-DOLG, paper", False]["rparis6k", 0] == (89.81, 77.70)


def test_a_score_that_is_not_published_is_a_dash():
    lines = published.beside((0.5, None), "box", "rparis6k", 0)
    row = next(line for line in lines if line.startswith("R18-HOW"))
    assert row.split("  ")[-1] == "its authors, github.com/gtolias/how"
    assert row.split()[3:5] == ["79.40", "-"]
    assert not any(line.startswith("DELF-R-ASMK* ") and "+ SP" not in line for line in lines)
    among = published.beside((0.5, 0.4), "box", "rparis6k", published.DISTRACTORS)
    assert not any("1,000 features" in line for line in among)
