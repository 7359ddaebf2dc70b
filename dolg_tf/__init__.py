"""DOLG in TensorFlow: one 512-d descriptor per photo, and all that trains, serves and scores it."""

import importlib

__version__ = "0.1.0"

# The names that need no knowledge of the house, each imported from its module when it is used:
# the first use of most of them takes the seconds that TensorFlow takes.
_HOMES = {
    "build_dolg": "dolg_tf.modeling.dolg",
    "DolgConfig": "dolg_tf.modeling.config",
    "load_network": "dolg_tf.modeling.model_dir",
    "load_model": "dolg_tf.retrieval.extract.model",
    "Index": "dolg_tf.retrieval.index.directory",
    "search": "dolg_tf.retrieval.exact.search",
    "evaluate_revisited": "dolg_tf.evaluation.revisited.score",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
