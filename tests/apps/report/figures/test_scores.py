import numpy as np

from dolg_tf.apps.report.figures import scores as scores_figure


def test_score_intervals():
    some = {"mAP": 0.5, "mAP_interval": [0.4, 0.7]}
    scores = {"a": dict.fromkeys(("easy", "medium", "hard"), some)}
    scores["b"] = {**scores["a"], "hard": {"mAP": None, "mAP_interval": None}}
    (axes,) = scores_figure.score_intervals(scores).axes
    means = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    assert means == [[50, 50], [50, 50], [50]]
    (bar,) = axes.containers[0].lines[2]
    np.testing.assert_allclose([line[:, 0] for line in bar.get_segments()], [[40, 70]] * 2)
    assert "b: easy 50.0 %, medium 50.0 %, hard \N{EN DASH}" in scores_figure.describe_scores(
        scores
    )
