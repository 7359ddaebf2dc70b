import numpy as np
from place_rows import photos_of

from dolg_tf.pipelines.own_photos import threshold
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.whitening import choose


def _estimated(sizes):
    """The estimate from some photos, and what it makes of others of the same places."""
    rows, places = photos_of([2 * size for size in sizes], size=256)
    searched = np.arange(len(rows)) % 2 == 0
    photos = DescriptorSet(tuple(map(str, np.flatnonzero(searched))), rows[searched])
    adapted = choose.adapt(photos.descriptors)
    found = threshold.estimate(photos, adapted)
    white = [(x - adapted.mean) @ adapted.projection for x in (rows[~searched], rows[searched])]
    white = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in white]
    passed = white[0] @ white[1].T >= found["threshold"]
    same = places[~searched][:, None] == places[searched]
    return found, (passed & same).sum() / passed.sum(), (passed & same).sum() / same.sum()


def test_the_estimate_holds_for_photos_that_were_not_learned_from():
    found, precision, recall = _estimated([6] * 30)
    assert found["estimated"] and found["warning"] == "" and "curve" not in found
    assert precision > 0.9 and recall > 0.9
    low, high = found["precision_interval"]
    assert low <= found["precision"] <= high <= 1


def test_it_is_worth_less_where_groups_are_less_pure():
    rows, _ = photos_of([6] * 30)
    photos = DescriptorSet(tuple(map(str, range(len(rows)))), rows)
    adapted = choose.adapt(rows)
    whole = threshold.estimate(photos, adapted)
    grouping = choose.dataclasses.replace(adapted.grouping, purity=adapted.grouping.purity / 2)
    half = threshold.estimate(photos, choose.dataclasses.replace(adapted, grouping=grouping))
    assert half["precision"] == whole["precision"] / 2 and half["threshold"] == whole["threshold"]


def test_there_is_none_where_nothing_was_learned():
    rows, _ = photos_of([1] * 40)
    photos = DescriptorSet(tuple(map(str, range(len(rows)))), rows)
    assert threshold.estimate(photos, choose.adapt(rows)) is None


def test_each_group_lends_one_photo_in_five():
    labels = np.repeat([0, 1, 2, -1], [20, 5, 2, 9])
    asked = threshold._asked(labels)
    counts = [int(asked[labels == group].sum()) for group in (0, 1, 2, -1)]
    assert counts[:2] == [4, 1] and counts[2] <= 1 and counts[3] == 0
