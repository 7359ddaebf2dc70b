"""A folder of photos, and a network that describes them by their colour, without TensorFlow."""

import pytest
from own_photos_world import Network, World

from dolg_tf.pipelines.own_photos import model
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.retrieval.extract.model import Describer


@pytest.fixture
def network(monkeypatch):
    found = Network()
    local = {"kind": "map", "dimensions": 64, "scales": [1.0], "threshold": 0.0, "reduction": None}
    about = Describer("abc", (1.0,), None, lambda: found.describe, local)
    monkeypatch.setattr(model, "check", lambda name: None)
    monkeypatch.setattr(model, "open_model", lambda name: Model("model", 0, about))
    monkeypatch.setattr(Model, "load", lambda self: found)
    return found


@pytest.fixture
def world(tmp_path, network):
    return World(tmp_path, network)
