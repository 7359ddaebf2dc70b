"""Networks that describe photos without training: GeM of a backbone with published weights.

All numbers of the backbone's last map are kept, since a last layer would be random.
"""

import dataclasses

from dolg_tf.modeling.backbones import BACKBONES, EfficientNet
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import LoadedNetwork
from dolg_tf.stage import files
from dolg_tf.weights import imagenet, published


def load_ready(name: str) -> LoadedNetwork:
    """Loads the ready network of published weights.

    Its descriptor is GeM with exponent 3: of an EfficientNet's top convolution, of a ResNet's last
    block. Nothing in it is random.

    Args:
      name: as `published.backbone_of` takes it.

    Raises:
      InputError: if there are no such weights, or they cannot be found.
    """
    backbone = published.backbone_of(name)
    top = isinstance(BACKBONES[backbone], EfficientNet)
    provenance = {"source": "ImageNet weights", "backbone_weights": name}
    path = published.find_file(name)
    if path is not None:
        provenance["backbone_weights_sha256"] = files.sha256(path)
    return build_gem(backbone, name, "top_conv" if top else "last_block", provenance)


def build_gem(backbone: str, weights: str, stride32: str, provenance: dict) -> LoadedNetwork:
    """Builds a network whose descriptor is GeM with exponent 3 of a backbone's last map.

    Args:
      backbone: a key of `BACKBONES`.
      weights: of the backbone, as `imagenet.load_backbone` takes them.
      stride32: which map is the last one, as in `DolgConfig`.
      provenance: where the weights come from, as plain JSON values.
    """
    config = DolgConfig(
        backbone=backbone, stride32=stride32, fusion="global_only", descriptor_size=0
    )
    config = dataclasses.replace(config, preprocessing=imagenet.preprocessing(weights, config))
    network = build_dolg(config)
    imagenet.load_backbone(network, weights)
    return LoadedNetwork(network, config, provenance)
