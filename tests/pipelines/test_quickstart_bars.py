"""The quickstart at its full size reaches what the README says."""

import json

import pytest

from dolg_tf.pipelines.quickstart import QuickstartConfig, quickstart


@pytest.mark.slow
def test_trained_beats_untrained_and_colour(tmp_path):
    quickstart(QuickstartConfig(output=str(tmp_path)))
    report = json.loads((tmp_path / "report.json").read_text())

    def score(variant, split, level="medium"):
        return report[variant][split][level]["mAP"]

    for split, bar in (("seen", 0.75), ("unseen", 0.55)):
        assert score("trained", split) >= bar
        assert score("trained", split) >= score("untrained", split) + 0.25
        assert score("colour_histogram", split) <= 0.35
        assert score("trained", split, "hard") <= score("trained", split, "easy") - 0.10
