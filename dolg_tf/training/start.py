"""What a fresh run starts from: another network, ImageNet, or chance."""

import dataclasses
import logging

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.model_dir import load_head, load_network, read_config
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.run_log import has_begun
from dolg_tf.training.trainer import Trainer
from dolg_tf.training.whitened_start import start_whitened
from dolg_tf.weights.imagenet import load_backbone, preprocessing

log = logging.getLogger(__name__)

# A network of the one is one of the other: only whether the exponent is trained differs.
_GEM, _POOLINGS = {"gem", "learned"}, ("global_pooling", "fused_pooling")


def adopt_network(model: DolgConfig, init_from: str, logdir: str = "") -> DolgConfig:
    """Returns the configuration of the network in `init_from`, which the run takes over.

    Whether exponents of GeM are trained stays the run's own choice.

    Args:
      model: what the flags of the run ask for.
      init_from: model or run directory.
      logdir: run directory; once the run has begun from `init_from`, the network is told by it, so
        that `init_from` may be gone when the run goes on.

    Raises:
      InputError: when a flag of the run, other than by its default, asks for another network.
    """
    begun = logdir and has_begun(logdir)
    if begun:
        source, values = read_config(logdir)
        begun = values.get("training", {}).get("init_from") == init_from
    if not begun:
        source, _ = read_config(init_from)
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
                f"--init_from={init_from} has {field.name} {theirs}, this run {ours}; leave "
                f"--{field.name} out"
            )
        log.info("%s %s, as in %s", field.name, theirs, init_from)
    for name, value in kept.items():
        if value == "gem":
            log.info("%s: GeM's exponent stays what it is; --%s=learned trains it on", name, name)
    return dataclasses.replace(source, **kept)


def adopt_preprocessing(model: DolgConfig, training: TrainingConfig) -> DolgConfig:
    """Returns the configuration with the preprocessing that --backbone_weights was trained with.

    A run that has begun keeps its own, so that the weights may be gone when it goes on.

    Raises:
      InputError: when the weights cannot be had.
    """
    if has_begun(training.logdir):
        values = read_config(training.logdir)[0].preprocessing
    else:
        values = preprocessing(training.backbone_weights, model)
    if values != model.preprocessing:
        log.info("preprocessing of %s: %s", training.backbone_weights, values)
    return dataclasses.replace(model, preprocessing=values)


def initialize(trainer: Trainer, landmarks: str | None, photos: TrainingInput) -> None:
    """Fills the weights of a fresh run: from --init_from, else from --backbone_weights.

    With --whiten_shrinkage the last layer and the class head then start from the photos.

    Args:
      trainer: the run; its network is of the configuration that `adopt_network` gave.
      landmarks: `landmarks_sha256` of the training records: the class head of another run is taken
        when its classes are the same.
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
            raise InputError(f"--init_from={training.init_from} changed while the run began")
        for variable in trainer.network.variables:
            variable.assign(values[variable.path])
        head = _take_head(trainer, landmarks)
        log.info("weights from %s %s; class head: %s", training.init_from, provenance, head)
    if training.whiten_shrinkage:
        start_whitened(trainer, photos)
    trainer.reset_averages()


def _take_head(trainer: Trainer, landmarks: str | None) -> str:
    """Takes over the class head of --init_from when it is for the same classes.

    Returns:
      What became of it, for the log.
    """
    init_from, ours = trainer.training.init_from, trainer.head.num_classes
    _, values = read_config(init_from)
    if "training" not in values:
        return "random, a model directory has none"
    theirs = values["data"]["num_classes"]
    if theirs != ours:
        return f"random, this run has {ours} classes and that one {theirs}"
    before = values.get("landmarks_sha256")
    if before and landmarks and before != landmarks:
        return f"random, the {ours} classes are other landmarks (relabeling.csv differs)"
    stored = load_head(init_from)
    needed = {variable.name: variable for variable in trainer.head.variables}
    shapes = {name: tuple(variable.shape) for name, variable in needed.items()}
    if shapes != {name: tuple(value.shape) for name, value in stored.items()}:
        return "random, that one's is of another --loss or --sub_centers"
    for name, variable in needed.items():
        variable.assign(stored[name])
    if landmarks and before:
        return "taken too, the landmarks are the same"
    return f"taken too, of {ours} classes; no relabeling.csv tells whether they are the same"
