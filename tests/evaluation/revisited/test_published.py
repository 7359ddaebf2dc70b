import dataclasses

import pytest

from dolg_tf.evaluation.revisited import published
from dolg_tf.retrieval.ground_truth import load_ground_truth


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_a_data_set_is_known_by_its_lists(ground_truths, name):
    task = load_ground_truth(ground_truths / f"gnd_{name}.pkl")
    assert published.dataset_of(dataclasses.replace(task, name="mine")) == name
    assert published.dataset_of(dataclasses.replace(task, index_ids=task.index_ids[1:])) is None
    assert published.dataset_of(dataclasses.replace(task, original=True)) is None


def test_rows_are_whole():
    tasks = [(name, n) for name in ("roxford5k", "rparis6k") for n in (0, 1_001_001)]
    for row in published.ROWS:
        assert list(row.percent) == tasks and row.source
        # Hard is harder than medium, and distractors cost.
        for name in ("roxford5k", "rparis6k"):
            alone, among = row.percent[name, 0], row.percent[name, 1_001_001]
            assert among[0] < alone[0] and among[1] < alone[1] < alone[0]
    by_name = {(row.method, row.cropped): row.percent for row in published.ROWS}
    assert len(by_name) == len(published.ROWS) == 11
    assert by_name["R101-DOLG, corrected", True]["roxford5k", 1_001_001] == (73.63, 51.57)
    assert by_name["R50-DOLG, paper", False]["rparis6k", 0] == (89.81, 77.70)
