from dolg_tf.apps.report.figures import queries


def test_ap_bars_are_sorted():
    ap = [0.05, None, 1.0, 0.5]
    (axes,) = queries.ap_bars(ap).axes
    assert [bar.get_height() for bar in axes.patches] == [100, 50, 5]
    assert axes.texts[0].get_text() == "mean 51.7 %"
    text = queries.describe_ap(ap)
    assert "3 queries" in text and "best 100.0 %, median 50.0 %, worst 5.0 %" in text
    assert "1 reach 90 %, 1 are below 10 %" in text


def test_best_and_worst_share_no_query():
    ap = [0.5, None, 0.9, 0.1, 0.7]
    assert queries.best_and_worst(ap, 4) == ([2, 4], [3, 0])
    assert queries.best_and_worst(ap, 1) == ([2], [3])
    assert queries.best_and_worst([0.5], 4) == ([0], [])
