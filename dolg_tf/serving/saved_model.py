"""SavedModels: the parts of a mode; writing one and checking it before it is put in place."""

import dataclasses
import gc
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import tensorflow as tf

from dolg_tf.data.scales import HOW_SCALES, LOCAL_SCALES
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.local_features import LocalKind, local_kind
from dolg_tf.modeling.model_dir import build_network, weights_hash
from dolg_tf.runtime import export_files
from dolg_tf.runtime.whitening import Whitening, load_whitening
from dolg_tf.serving import model_card, older_loaders
from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.serving.graph.folding import owner
from dolg_tf.serving.searched import Searched
from dolg_tf.serving.source import load_source
from dolg_tf.serving.verify import Check, Run, signature_runner, verify
from dolg_tf.stage import config as configs
from dolg_tf.stage import files

log = logging.getLogger(__name__)

Functions = dict[str, tf.types.experimental.PolymorphicFunction]


class Inside(NamedTuple):
    """What was learned on a network's features and is applied inside its export.

    Attributes:
      whitening: of the descriptor; None: it is as the network gives it.
      reduction: of local features; None: they are as the network gives them.
      searched: the photos that mode `search` finds.
    """

    whitening: Whitening | None = None
    reduction: Whitening | None = None
    searched: Searched | None = None


# The start of the card's code in each mode.
LOAD_MODEL_AND_PHOTO = """import tensorflow as tf

model = tf.saved_model.load("NAME")
photo = tf.io.decode_jpeg(tf.io.read_file("photo.jpg"), channels=3, dct_method="INTEGER_ACCURATE")
"""


def write_signatures(functions: Functions, path: pathlib.Path) -> None:
    """Writes graph functions as the signatures of a SavedModel."""
    traced = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(owner(traced.values()), str(path), traced, older_loaders.OPTIONS)
    older_loaders.simplify(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModelMode:
    """An export mode whose output is a SavedModel.

    Args:
      functions: (network, config, inside) -> the graph functions to save, by signature. The
        network maps float32 RGB in [0, 1], (B, H, W, 3), to (B, D).
      checks: (network, config, inside) -> the calls that the written model must answer as
        the Keras network does; the first is the most telling.
      words: of the model card.
      write: writes the functions to a directory.
      runner: directory -> function that runs a check as users of Python do; None: its users load
        it in C++.
      add_files: writes what goes beside a model that has passed its checks.
    """

    functions: Callable[[keras.Model, ExportConfig, Inside], Functions]
    checks: Callable[[keras.Model, ExportConfig, Inside], Iterable[Check]]
    words: model_card.Words
    write: Callable[[Functions, pathlib.Path], None] = write_signatures
    runner: Callable[[pathlib.Path], Run] | None = signature_runner
    add_files: Callable[[pathlib.Path, ExportConfig], None] = lambda path, config: None

    def export(
        self, config: ExportConfig, in_brief: bool = False, searched: Searched | None = None
    ) -> pathlib.Path:
        """Writes the SavedModel; `assets.extra/dolg.json` in it says where it comes from.

        Args:
          config: the network, and where to write it.
          in_brief: whether to check the first call alone, and that in the C++ loader.
          searched: the photos that mode `search` finds.
        """
        output = pathlib.Path(config.output)
        report = model_card.read_report(config.report)
        network, dolg_config, provenance = load_source(config)
        weights, kind = weights_hash(network, dolg_config), local_kind(network)
        inside = Inside(
            _learned("--whitening", network.output_shape[-1], config, weights),
            _learned("--local_reduction", kind.dimensions, config, weights),
            searched,
        )
        about = _about(weights, dolg_config, provenance, config, inside)
        if searched is not None:
            plain = export_hash(weights, config.precision, None)
            searched.check_model(config.source, plain, about["weights_sha256"], inside.whitening)
            about["index"] = searched.about
        if config.gives_local:
            about["local"] = _about_local(kind, provenance, config, inside.reduction)
        with files.atomic_path(output) as temporary:
            exported = _in_precision(network, dolg_config, config.precision)
            self.write(self.functions(exported, config, inside), temporary)
            gc.collect()  # the graphs' variables, before the written model takes as much memory
            export_files.write_about(temporary, about)
            self.verify(temporary, network, config, inside, in_brief)
            self.add_files(temporary, config)
            card = model_card.card_of(
                _name(output), about, self.words, network, dolg_config, config.model_dir, report
            )
            files.write_text(temporary / model_card.NAME, card)
        log.info("exported %s to %s", config.source, output)
        return output

    def verify(
        self,
        path: pathlib.Path,
        network: keras.Model,
        config: ExportConfig,
        inside: Inside,
        in_brief: bool = False,
    ) -> None:
        """Makes sure that a written model answers its checks as the Keras network does."""
        checks = itertools.islice(self.checks(network, config, inside), 1 if in_brief else None)
        runner = None if in_brief else self.runner
        held = 0 if inside.searched is None else inside.searched.nbytes
        verify(path, network, list(checks), config.precision, runner, held)


def export_hash(weights: str, precision: str, whitening: Whitening | None) -> str:
    """Returns the SHA-256 that tells descriptors of an export from those of any other.

    Args:
      weights: `model_dir.weights_hash` of the network; it is the result where precision and
        whitening do not change the descriptors.
      precision: of the convolutions.
      whitening: inside the export.
    """
    if precision == "float32" and whitening is None:
        return weights
    parts = [weights, precision, "" if whitening is None else whitening.sha256]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _learned(flag: str, size: int, config: ExportConfig, weights: str) -> Whitening | None:
    """Reads what an option names, and makes sure that it was learned on these weights' features."""
    path = getattr(config, flag.removeprefix("--"))
    if not path:
        return None
    found, half = load_whitening(path, size, flag), export_hash(weights, "bfloat16", None)
    found.check_model(path, config.source, weights, half, flag=flag)
    return found


def _about(
    weights: str, dolg_config: DolgConfig, provenance: dict, config: ExportConfig, inside: Inside
) -> dict:
    """Returns what `assets.extra/dolg.json` says."""
    whitening = inside.whitening
    upright = {"upright": config.upright} if "upright" in MODES[config.mode].takes else {}
    return upright | {
        "format_version": export_files.FORMAT_VERSION,
        "mode": config.mode,
        "preprocessing": configs.to_dict(dolg_config.preprocessing),
        "scales": list(config.scales),
        "precision": config.precision,
        "whitening": _identity(whitening),
        "weights_sha256": export_hash(weights, config.precision, whitening),
        "provenance": provenance,
    }


def _about_local(
    kind: LocalKind, provenance: dict, config: ExportConfig, reduction: Whitening | None
) -> dict:
    """Returns what it says of local features."""
    threshold = config.local_threshold
    if threshold is None:
        threshold = provenance.get("local_threshold", 0.0)
    scales = config.local_scales or (HOW_SCALES if kind.name == "how" else LOCAL_SCALES)
    return {
        "kind": kind.name,
        "dimensions": kind.dimensions if reduction is None else reduction.projection.shape[1],
        "stride": kind.stride,
        "scales": list(scales),
        "threshold": threshold,
        "reduction": _identity(reduction),
    }


def _identity(whitening: Whitening | None) -> dict | None:
    return None if whitening is None else {"sha256": whitening.sha256}


def _in_precision(network: keras.Model, dolg_config: DolgConfig, precision: str) -> keras.Model:
    """Returns the network, or one of the same weights that convolves in bfloat16."""
    if precision == "float32":
        return network
    cpu = pathlib.Path("/proc/cpuinfo")
    native = cpu.is_file() and "bf16" in cpu.read_text(encoding="utf-8")
    if not native and not tf.config.list_physical_devices("GPU"):
        log.warning("this processor has no bfloat16: the model works here, but slower than float32")
    rebuilt = build_network(dolg_config, "mixed_bfloat16")
    rebuilt.set_weights(network.get_weights())
    return rebuilt


def _name(output: pathlib.Path) -> str:
    """Returns the model's name: that of the folder, or of the one above it in NAME/VERSION."""
    output = output.absolute()
    return output.parent.name if output.name.isdigit() else output.name
