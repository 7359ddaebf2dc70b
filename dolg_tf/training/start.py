"""The start of a fresh run: from another network, ImageNet weights or random weights."""

import dataclasses
import logging

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.files.config_file import has_begun, need_dolg, read_config
from dolg_tf.modeling.model_dir import LoadedNetwork, load_head, load_network
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.trainer import Trainer
from dolg_tf.training.whitened_start import start_whitened
from dolg_tf.weights.imagenet import load_backbone, preprocessing

log = logging.getLogger(__name__)

# These two differ only in whether the exponent is trained.
_GEM, _POOLINGS = {"gem", "learned"}, ("global_pooling", "fused_pooling")


def adopt_network(model: DolgConfig, init_from: str, logdir: str = "") -> DolgConfig:
    """Returns the configuration of the network in `init_from`, which the run adopts.

    Whether exponents of GeM are trained remains the run's own choice.

    Args:
      model: configuration by the flags of the run.
      init_from: model or run directory.
      logdir: run directory; once the run has begun from `init_from`, the network is read from here,
        so `init_from` may be gone when the run continues.

    Raises:
      InputError: if a flag of the run that is not at its default asks for another network.
    """
    begun = logdir and has_begun(logdir)
    if begun:
        source, values = read_config(logdir)
        begun = values.get("training", {}).get("init_from") == init_from
    if not begun:
        source, _ = read_config(init_from)
    source = need_dolg(source, init_from, "init_from")
    default, kept = DolgConfig(), {}
    for field in dataclasses.fields(DolgConfig):
        ours, theirs = getattr(model, field.name), getattr(source, field.name)
        if ours == theirs:
            continue
        if field.name in _POOLINGS and {ours, theirs} == _GEM:
            kept[field.name] = ours
            continue
        if ours != getattr(default, field.name):
            raise InputError(
                f"--init_from={init_from} has {field.name} {theirs}, this run {ours}; omit "
                f"--{field.name}"
            )
        log.info("%s %s, as in %s", field.name, theirs, init_from)
    for name, value in kept.items():
        if value == "gem":
            log.info("%s: GeM's exponent is kept; --%s=learned trains it further", name, name)
    return dataclasses.replace(source, **kept)


def adopt_preprocessing(model: DolgConfig, training: TrainingConfig) -> DolgConfig:
    """Returns the configuration with the preprocessing of --backbone_weights.

    A run that has begun keeps its own, so the weights may be gone when it continues.

    Raises:
      InputError: if the weights cannot be found or read.
    """
    if has_begun(training.logdir):
        values = read_config(training.logdir)[0].preprocessing
    else:
        values = preprocessing(training.backbone_weights, model)
    if values != model.preprocessing:
        log.info("preprocessing of %s: %s", training.backbone_weights, values)
    return dataclasses.replace(model, preprocessing=values)


def initialize(trainer: Trainer, landmarks: str | None, photos: TrainingInput) -> None:
    """Fills the weights of a fresh run, from --init_from or else from --backbone_weights.

    With --whiten_shrinkage, the last layer and the class head then start from the photos.

    Args:
      trainer: of the run; its network has the configuration returned by `adopt_network`.
      landmarks: `landmarks_sha256` of the training records: the class head of another run is
        adopted if its classes are the same.
      photos: that the run trains on.
    """
    training = trainer.training
    if not training.init_from:
        load_backbone(trainer.network, training.backbone_weights)
    else:
        source, _, provenance = load_network(training.init_from)
        # By path, since layers that are not trained come last in `weights`.
        values = {variable.path: variable.numpy() for variable in source.variables}
        if set(values) != {variable.path for variable in trainer.network.variables}:
            raise InputError(f"--init_from={training.init_from} changed during the start")
        for variable in trainer.network.variables:
            variable.assign(values[variable.path])
        head = _take_head(trainer, landmarks)
        log.info("weights from %s %s; class head: %s", training.init_from, provenance, head)
    if training.whiten_shrinkage:
        start_whitened(trainer, photos)
    trainer.reset_averages()


def initial_network(logdir: files.Path) -> LoadedNetwork:
    """Returns the network of a run from --backbone_weights as it was before its first step."""
    model, run = read_config(logdir)
    network = build_dolg(model, seed=run["training"]["seed"])
    load_backbone(network, run["training"]["backbone_weights"])
    return LoadedNetwork(network, model, {"source": "before the first step"})


def _take_head(trainer: Trainer, landmarks: str | None) -> str:
    """Adopts the class head of --init_from if it has the same classes.

    Returns:
      What was done, for the log.
    """
    init_from, ours = trainer.training.init_from, trainer.head.num_classes
    _, values = read_config(init_from)
    if "training" not in values:
        return "random, since a model directory has none"
    theirs = values["data"]["num_classes"]
    if theirs != ours:
        return f"random, since this run has {ours} classes and that one {theirs}"
    before = values.get("landmarks_sha256")
    if before and landmarks and before != landmarks:
        return f"random, since the {ours} classes are other landmarks (relabeling.csv differs)"
    stored = load_head(init_from)
    needed = {variable.name: variable for variable in trainer.head.variables}
    shapes = {name: tuple(variable.shape) for name, variable in needed.items()}
    if shapes != {name: tuple(value.shape) for name, value in stored.items()}:
        return "random, since that run has another --loss or --sub_centers"
    for name, variable in needed.items():
        variable.assign(stored[name])
    if landmarks and before:
        return "adopted, since the landmarks are the same"
    return f"adopted, with {ours} classes; without relabeling.csv they cannot be compared"
