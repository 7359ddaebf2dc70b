"""The network that is exported."""

from dolg_tf.modeling.model_dir import LoadedNetwork, load_network
from dolg_tf.serving.config import ExportConfig
from dolg_tf.weights.ready import load_ready


def load_source(config: ExportConfig) -> LoadedNetwork:
    """Loads the network of `model_dir`, or the ready one of `backbone_weights`.

    Raises:
      InputError: if it cannot be read.
    """
    if config.backbone_weights:
        return load_ready(config.backbone_weights)
    return load_network(config.model_dir, config.checkpoint, config.weights)
