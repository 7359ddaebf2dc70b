"""Writes a SavedModel and checks it before it is put in place."""

import dataclasses
import hashlib
import logging
import pathlib

from dolg_tf import config as configs
from dolg_tf import files
from dolg_tf.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# The authors' five scales.
SCALES = (0.3535, 0.5, 0.7071, 1.0, 1.4142)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a network is exported."""

    model_dir: str = configs.option("run directory or model directory")
    output: str = configs.option("directory of the SavedModel")
    checkpoint: str = configs.option(
        "which checkpoint of a run directory", "latest", choices=("latest", "best")
    )
    weights: str = configs.option(
        "raw, or ema: their moving average, of a run with --ema_decay",
        "raw",
        choices=("raw", "ema"),
    )
    scales: tuple[float, ...] = configs.option(
        "default scales, stored beside the model", SCALES, unit="of the photo's sides"
    )
    overwrite: bool = configs.option("replace an existing output", False)

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"--scales={self.scales} must be one or more numbers above 0")


def weights_hash(network) -> str:
    """Returns the SHA-256 of every variable's name, shape and bytes, in order."""
    digest = hashlib.sha256()
    for variable in network.variables:
        array = variable.numpy()
        digest.update(f"{variable.path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def export_saved_model(config: ExportConfig) -> pathlib.Path:
    """Exports a trained or converted network as a SavedModel in mode `serving`.

    Signatures: `images` (uint8 (B, H, W, 3), float32 scales (S,)) -> descriptors (B, D), unit
    norm; `maps` (uint8 (H, W, 3)) -> attention, orthogonal_norm, explained_energy (h, w), left
    out where the network has no local branch.

    Returns:
      The directory.
    """
    output = pathlib.Path(config.output)
    if output.exists() and not config.overwrite:
        raise InputError(f"{output} exists; give --overwrite or another --output")

    from dolg_tf.modeling.model_dir import load_dolg

    network, dolg_config, provenance = load_dolg(
        config.model_dir, config.checkpoint, config.weights
    )
    about = {
        "format_version": FORMAT_VERSION,
        "preprocessing": configs.to_dict(dolg_config.preprocessing),
        "scales": list(config.scales),
        "weights_sha256": weights_hash(network),
        "provenance": provenance,
    }
    with files.atomic_path(output) as temporary:
        _write(network, temporary)
        files.write_json(temporary / "assets.extra" / "dolg.json", about)
        _verify(network, temporary, config.scales)
    log.info("exported %s to %s", config.model_dir, output)
    return output


def _write(network, path: pathlib.Path) -> None:
    import tensorflow as tf

    from dolg_tf.modeling.dolg import has_local_branch
    from dolg_tf.serving import signatures

    module = tf.Module()
    # Not the network itself: a Keras 3 model as an attribute loads in Python but not in the
    # C++ loader ("Could not find variable").
    module.weights = [variable.value for variable in network.variables]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
            tf.TensorSpec([None], tf.float32, "scales"),
        ]
    )
    def images(images, scales):
        return {"descriptors": signatures.multi_scale(network, images, scales)}

    functions = {"images": images}
    if has_local_branch(network):
        photo = tf.TensorSpec([None, None, 3], tf.uint8, "image")
        functions["maps"] = tf.function(signatures.maps(network), input_signature=[photo])
    module.functions = functions
    tf.saved_model.save(module, str(path), signatures=functions)


def _verify(network, path: pathlib.Path, scales) -> None:
    """Compares the written model with the Keras network on photos of odd sizes."""
    import numpy as np
    import tensorflow as tf

    from dolg_tf.serving import signatures

    loaded = tf.saved_model.load(str(path))
    scales = tf.constant(scales, tf.float32)
    rng = np.random.default_rng(0)
    for height, width in ((97, 130), (32, 45)):
        photos = tf.constant(rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8))
        ours = signatures.multi_scale(network, photos, scales)
        theirs = loaded.signatures["images"](images=photos, scales=scales)["descriptors"]
        error = float(tf.reduce_max(tf.abs(ours - theirs)))
        if not error < 1e-4:
            raise RuntimeError(f"the exported descriptors differ from the network's by {error:.1e}")
