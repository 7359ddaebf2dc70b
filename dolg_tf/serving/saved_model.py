"""Writes a SavedModel and checks it before it is put in place."""

import dataclasses
import hashlib
import logging
import pathlib
import zipfile

from dolg_tf.modeling.config import NetworkConfig
from dolg_tf.stage import config as configs
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# The authors' five scales.
SCALES = (0.3535, 0.5, 0.7071, 1.0, 1.4142)
SUBMISSION = "submission.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(NetworkConfig):
    """How a network is exported."""

    output: str = configs.option("directory of the SavedModel; for TF Serving NAME/VERSION")
    mode: str = configs.option(
        "whose signatures it has: serving (extraction, report, TF Serving), delg (DELF's and "
        "DELG's extractor), kaggle (the scorer of Landmark Retrieval 2020) or tf1 (delg's as "
        "tensors of a TF1-style model, for .prune)",
        "serving",
        choices=("serving", "delg", "kaggle", "tf1"),
    )
    scales: tuple[float, ...] = configs.option(
        "of mode kaggle, which has them inside; of mode serving those of encoded photos, and the "
        "default ones, stored beside the model",
        SCALES,
        unit="of the photo's sides",
    )
    max_pixels: int = configs.option(
        "mode serving: an encoded photo that is larger is not decoded, and gets status 2",
        2**22,
        unit="pixels",
    )
    precision: str = configs.option(
        "of the convolutions; pooling, fusion and the last layers stay in float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    whitening: str = configs.option(
        ".npz of mean (D,) and projection (D, K), applied to the descriptor inside the model; "
        "modes serving and kaggle",
        "",
    )
    zip: bool = configs.option(
        f"mode kaggle: also write {SUBMISSION} inside the output, to be submitted as it is", False
    )
    report: str = configs.option(
        "report.json of an evaluation of this model, for the scores in its card; empty: not "
        "measured",
        "",
    )
    overwrite: bool = configs.option("replace an existing output", False)

    def __post_init__(self):
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise InputError(f"--scales={self.scales} must be one or more numbers above 0")
        configs.at_least(self, max_pixels=1)
        if self.whitening and self.mode in ("delg", "tf1"):
            raise InputError(
                f"--whitening with --mode={self.mode}: its rows are one a scale, and whitening "
                "belongs behind their mean; give it to DELF's extractor (use_pca in its "
                "configuration), or choose --mode=serving or kaggle"
            )
        if self.zip and self.mode != "kaggle":
            raise InputError(f"--zip with --mode={self.mode}: only kaggle takes a {SUBMISSION}")


def export_hash(weights: str, config: ExportConfig, whitening) -> str:
    """Returns the SHA-256 that tells descriptors of this export from those of any other.

    Args:
      weights: `model_dir.weights_hash` of the network; it is the result, where precision and
        whitening leave the descriptors as they are.
      config: how it is exported.
      whitening: what is inside it.
    """
    if config.precision == "float32" and whitening is None:
        return weights
    parts = [weights, config.precision, "" if whitening is None else whitening.sha256]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def export_saved_model(config: ExportConfig) -> pathlib.Path:
    """Exports a trained or converted network as a SavedModel.

    Its signatures are those of `--mode`, see `dolg_tf/serving/modes.py`; `assets.extra/dolg.json`
    says where it comes from.

    Returns:
      The directory.

    Raises:
      InputError: when the output exists, or model or whitening cannot be read or do not fit.
      RuntimeError: when the written model does not answer as the network does.
    """
    output = pathlib.Path(config.output)
    files.check_output(output, config.overwrite, "saved_model.pb")

    from dolg_tf.modeling.model_dir import load_network, weights_hash
    from dolg_tf.serving.model_card import NAME, card_of, read_report
    from dolg_tf.serving.server_files import write_server_files
    from dolg_tf.serving.verify import verify
    from dolg_tf.stage.whitening import load_whitening

    report = read_report(config.report)
    network, dolg_config, provenance = load_network(
        config.model_dir, config.checkpoint, config.weights
    )
    weights, whitening = weights_hash(network, dolg_config), None
    if config.whitening:
        whitening = load_whitening(config.whitening, network.output_shape[-1])
        _check_whitening(whitening, weights, config)
    about = _about(weights, dolg_config, provenance, config, whitening)
    with files.atomic_path(output) as temporary:
        _write(_in_precision(network, dolg_config, config.precision), config, whitening, temporary)
        files.write_json(temporary / "assets.extra" / "dolg.json", about)
        if config.mode == "serving":
            write_server_files(temporary)
        verify(temporary, network, config, whitening)
        if config.zip:
            _write_zip(temporary)
        card = card_of(output.name, about, network, dolg_config, config.model_dir, report)
        files.write_text(temporary / NAME, card)
    log.info("exported %s to %s", config.model_dir, output)
    return output


def _check_whitening(whitening, weights: str, config: ExportConfig) -> None:
    """Makes sure that a whitening was learned on descriptors of these weights, if it says so."""
    half = export_hash(weights, dataclasses.replace(config, precision="bfloat16"), None)
    whitening.check_model(config.whitening, config.model_dir, weights, half)


def _about(weights: str, dolg_config, provenance: dict, config: ExportConfig, whitening) -> dict:
    """Returns what `assets.extra/dolg.json` says."""
    return {
        "format_version": FORMAT_VERSION,
        "mode": config.mode,
        "preprocessing": configs.to_dict(dolg_config.preprocessing),
        "scales": list(config.scales),
        "precision": config.precision,
        "whitening": None if whitening is None else {"sha256": whitening.sha256},
        "weights_sha256": export_hash(weights, config, whitening),
        "provenance": provenance,
    }


def _in_precision(network, dolg_config, precision: str):
    """Returns the network, or one of the same weights that convolves in bfloat16."""
    if precision == "float32":
        return network
    import tensorflow as tf

    from dolg_tf.modeling.dolg import build_dolg

    cpu = pathlib.Path("/proc/cpuinfo")
    native = cpu.is_file() and "bf16" in cpu.read_text(encoding="utf-8")
    if not native and not tf.config.list_physical_devices("GPU"):
        log.warning("this processor has no bfloat16: the model works here, but slower than float32")
    rebuilt = build_dolg(dolg_config, dtype="mixed_bfloat16")
    rebuilt.set_weights(network.get_weights())
    return rebuilt


def _write(network, config: ExportConfig, whitening, path: pathlib.Path) -> None:
    import tensorflow as tf

    from dolg_tf.serving.modes import MODES

    functions = MODES[config.mode](network, config, whitening)
    if config.mode == "tf1":
        from dolg_tf.serving.tf1 import write_tf1

        write_tf1(functions["serving_default"], path)
        return
    tf.saved_model.save(tf.Module(), str(path), functions)


def _write_zip(folder: pathlib.Path) -> None:
    """Writes the submission: the model's files at the root of the archive."""
    members = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(folder / SUBMISSION, "w") as archive:
        for file in members:
            archive.write(file, file.relative_to(folder))
