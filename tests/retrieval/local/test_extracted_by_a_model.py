"""`extract --local` by a SavedModel: what `LoadedModel` gives, for each photo."""

import json

import numpy as np
import stand_in_saved_model

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.making import LocalConfig


def test_both_sets_are_those_of_the_model(photos, tmp_path):
    path = stand_in_saved_model.save(tmp_path / "model", ("local",))
    about = json.loads((path / "assets.extra/dolg.json").read_text())
    about["local"] = {
        "kind": "map",
        "dimensions": 3,
        "stride": 16,
        "scales": [0.5, 1.0],
        "threshold": 0.02,
        "reduction": None,
    }
    (path / "assets.extra/dolg.json").write_text(json.dumps(about))
    settings = ExtractConfig(
        saved_model=str(path), images=str(photos), output=str(tmp_path / "set"), max_side=40
    )
    rows = extract(settings, LocalConfig(local=True, max_features=4, local_dtype="float32"))
    found = feature_set.read(tmp_path / "set.local")
    assert found.meta["threshold"] == 0.02 and found.meta["dimensions"] == 3
    model, like = load_model(path), found.meta
    assert descriptors.read(tmp_path / "set").ids == found.ids == rows.ids
    assert 1 < found.counts.mean() <= 4
    for row, id_ in enumerate(found.ids):
        alone = model.local(photos / f"{id_}.png", max_features=4, like=like)
        assert found[row].size == alone.size
        for part in ("positions", "scales", "strengths", "descriptors"):
            one, other = getattr(found[row], part), getattr(alone, part)
            np.testing.assert_allclose(one, other, atol=1e-6)
    whole = model.describe([photos / f"{id_}.png" for id_ in found.ids], like=rows.meta)
    np.testing.assert_allclose(rows.descriptors[:], whole, atol=1e-6)
