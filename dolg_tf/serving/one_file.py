"""What the exports that are one file share, ONNX and LiteRT: their contract, and how it is checked.

Both hold one function: `image`, float32 RGB in [0, 1], (B, H, W, 3), of any size, all photos of a
batch of one size -> `descriptor`, float32 (B, D), of unit L2 norm. Channel order, normalisation
and the descriptor's norm are inside. Its width and nothing else differs between networks.

- One scale: how many there are is each app's choice between time and accuracy, and a loop with a
  resize inside is what mobile delegates do not run and runtimes do each in their own way. Several
  scales are the mean of the descriptors of the resized photo, with unit norm again.
- Floats, not levels: the photo at another scale is made of resized floats, as the authors do it;
  rounding them to uint8 would move the descriptor. A photo as it is needs one division by 255.
"""

import dataclasses
import importlib.util
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from dolg_tf.modeling.config import DolgConfig, NetworkConfig
from dolg_tf.stage import config as configs
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Batch, height and width in pixels.
_SHAPES = ((1, 97, 130), (2, 97, 130), (1, 32, 45), (2, 32, 45), (1, 10, 10))

Describe = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileExportConfig(NetworkConfig):
    """Which network is exported to which file."""

    output: str = configs.option("file to write; the model card is written beside it, as FILE.md")
    report: str = configs.option(
        "report.json of an evaluation of this network, for the scores of the model card; empty: "
        "they are not measured",
        "",
    )
    overwrite: bool = configs.option("replace an existing output", False)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network that is being exported.

    `describe` is the contract as a `tf.function`; `variables` are what it reads; `about` says
    where it comes from, as plain JSON values.
    """

    describe: Callable
    variables: list
    about: dict


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a written file is from the network, at most, over all photos of the check."""

    difference: float
    cosine: float

    def __str__(self):
        return f"largest difference {self.difference:.1e}, smallest cosine {self.cosine:.6f}"


def need_packages(extra: str, *names: str) -> None:
    """Makes sure that packages of an extra are installed.

    Raises:
      InputError: with the command that installs them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"no package {', '.join(missing)} is installed; pip install 'dolg_tf[{extra}]'"
        )


def export_file(
    config: FileExportConfig,
    form: dict,
    write: Callable[[Exported, pathlib.Path], None],
    check: Callable[[Exported, pathlib.Path], Distance],
) -> pathlib.Path:
    """Exports a network as one file, with its model card beside it.

    Args:
      config: what the user asks for.
      form: what `about` says of the file's form, such as its `mode`.
      write: writes the file.
      check: runs the written file; raises RuntimeError when it is too far from the network.

    Returns:
      The file.

    Raises:
      InputError: when the output exists, or model or report cannot be read or do not fit.
      RuntimeError: from `check`.
    """
    output = pathlib.Path(config.output)
    beside = output.with_name(f"{output.name}.md")
    for path in (output, beside):
        files.check_output(path, config.overwrite)

    from dolg_tf.modeling.model_dir import load_network
    from dolg_tf.serving.model_card import card_of, read_report

    report = read_report(config.report)
    network, dolg_config, provenance = load_network(
        config.model_dir, config.checkpoint, config.weights
    )
    about = {**form, **_about(network, dolg_config, provenance)}
    card = card_of(output.name, about, network, dolg_config, config.model_dir, report)
    exported = Exported(_describe(network), [v.value for v in network.variables], about)
    with files.atomic_path(output) as temporary:
        write(exported, temporary)
        distance = check(exported, temporary)
    files.write_text(beside, card)
    log.info("exported %s to %s, %s bytes", config.model_dir, output, f"{output.stat().st_size:,}")
    log.info("against the network, descriptors of unit norm: %s", distance)
    return output


def _about(network, config: DolgConfig, provenance: dict) -> dict:
    from dolg_tf.modeling.model_dir import weights_hash

    return {
        "format_version": FORMAT_VERSION,
        "preprocessing": configs.to_dict(config.preprocessing),
        "weights_sha256": weights_hash(network, config),
        "provenance": provenance,
    }


def _describe(network):
    """Returns the contract as a graph function."""
    import tensorflow as tf

    photos = tf.TensorSpec([None, None, None, 3], tf.float32, "image")

    @tf.function(input_signature=[photos], autograph=False)
    def describe(image):
        descriptors = network(image, training=False)
        return {"descriptor": tf.math.l2_normalize(descriptors, axis=-1)}

    return describe


def distance(exported: Exported, run: Describe) -> Distance:
    """Compares a written file with the network on photos of odd sizes, alone and two at a time.

    Args:
      exported: the network.
      run: the written file, float32 (B, H, W, 3) -> (B, D).

    Raises:
      RuntimeError: when the file's descriptors have another shape or dtype.
    """
    rng, differences, cosines = np.random.default_rng(0), [], []
    for shape in _SHAPES:
        photos = rng.integers(0, 256, (*shape, 3)).astype(np.float32) / 255
        expected, found = exported.describe(photos)["descriptor"].numpy(), run(photos)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise RuntimeError(
                f"descriptors of {photos.shape} are {found.dtype} {found.shape}, not "
                f"{expected.dtype} {expected.shape}"
            )
        differences.append(np.abs(found - expected).max())
        cosines.append((found * expected).sum(-1).min())
    return Distance(float(np.max(differences)), float(np.min(cosines)))
