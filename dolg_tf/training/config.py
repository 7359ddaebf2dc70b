"""Configuration of a training run.

No TensorFlow here, as in `dolg_tf.stage.config`.
"""

import dataclasses
import pathlib

from dolg_tf.data.config import DataConfig
from dolg_tf.data.records import classes, tfrecord
from dolg_tf.modeling.config import HeadConfig
from dolg_tf.modeling.files.config_file import find_network, has_begun, need_dolg
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.weights import published


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(HeadConfig):
    """How the network is trained."""

    logdir: str = option("run directory: checkpoints, metrics, configuration")
    init_from: str = option(
        "model or run directory to start from, whose network is adopted; empty: none", ""
    )
    backbone_weights: str = option(
        "ImageNet weights of the backbone: a KerasHub preset; efficientnet_lite0 or "
        "efficientnet_lite2, from their pip packages; a .weights.h5, .keras, .pth, .pt, .pyth, "
        ".npz or .safetensors file; or none",
        "none",
    )
    whiten_shrinkage: float = option(
        "above 0: the last layer starts as a whitening, learned on the training photos, that evens "
        "out the differences between photos of one landmark. This share of the mean variance is "
        "added to each direction: near 0 suits the trained landmarks, near 1 others. 0: random "
        "start",
        0.0,
    )
    restore: str = option(
        "which checkpoint of the run directory to continue from",
        "latest",
        choices=("latest", "previous"),
    )
    attention_loss: float = option(
        "weight of a loss that trains the attention of DOLG's local features as DELG's is trained: "
        "the class of the photo from their mean; it reaches nothing before the local branch. 0: "
        "attention learns through the descriptor alone",
        0.0,
    )
    # Batches and steps.
    batch_size: int = option("photos per step, over all replicas", 128, unit="photos")
    accumulate: int = option(
        "number of pieces that a replica splits its photos of a step into, to save memory", 1
    )
    epochs: int = option("passes over the training photos", 100)
    max_steps: int = option("stop after this many steps; 0: after the last epoch", 0, unit="steps")
    # Learning rate.
    initial_lr: float = option("learning rate after the warm-up", 0.05)
    backbone_lr: float = option(
        "learning rate of the backbone, as a share of the rate elsewhere; 0: it keeps its weights "
        "and batch statistics, and a step takes a third of the time",
        1.0,
    )
    schedule: str = option(
        "schedule of the learning rate. cosine: over the steps after the warm-up; cosine_by_epoch: "
        "over all epochs, constant within each, as in the authors' code",
        "cosine",
        choices=("cosine", "cosine_by_epoch"),
    )
    warmup_epochs: float = option("linear warm-up of the learning rate", 5.0, unit="epochs")
    warmup_start: float = option("initial share of the learning rate in the warm-up", 0.0)
    # Optimizer.
    optimizer: str = option("optimizer", "sgd", choices=("sgd", "adam"))
    momentum: float = option("momentum of sgd", 0.9)
    nesterov: bool = option("use Nesterov's momentum with sgd", False)
    weight_decay: float = option("weight decay", 1e-4)
    decay: str = option(
        "kind of weight decay. coupled: an L2 term in the gradient; decoupled: apart from the "
        "gradient, times the learning rate",
        "coupled",
        choices=("coupled", "decoupled"),
    )
    decay_all: bool = option("decay norms, biases and exponents too, not only kernels", False)
    clip_norm: float = option("largest norm of the whole gradient; 0: unlimited", 0.0)
    ema_decay: float = option("decay per step of a moving average of the weights; 0: none", 0.0)
    # Batch norm and arithmetic.
    sync_batch_norm: bool = option("compute batch statistics over all replicas", False)
    freeze_batch_norm: bool = option(
        "batch norms use and keep their initial statistics, scales and offsets", False
    )
    precision: str = option(
        "precision of the convolutions; norms, pooling, fusion and loss stay in float32",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    jit_compile: bool = option("compile the step with XLA; one device only", False)
    recompute: bool = option(
        "save memory: keep only the input of each residual block of the backbone, and compute the "
        "block again in the backward pass",
        False,
    )
    deterministic: bool = option("make runs equal, bit for bit; slower", False)
    seed: int = option("seed of initialisation, order and augmentation", 0)
    # Monitoring.
    log_every: int = option("interval of lines in the log", 50, unit="steps")
    checkpoint_every: int = option("interval of checkpoints", 1000, unit="steps")
    keep_checkpoints: int = option("how many of the latest checkpoints to keep", 2)
    validate_every: int = option(
        "interval of validations; 0: at the end of each epoch", 0, unit="steps"
    )
    retrieval_ground_truth: str = option(
        "gnd_*.pkl of a retrieval set to search at each validation; the best checkpoint is then "
        "the one with the highest medium mAP; empty: none",
        "",
    )
    retrieval_image_root: str = option(
        "folder of its photos; empty: the folder of the ground truth", ""
    )
    retrieval_image_size: int = option(
        "longest side of its photos, at one scale; 0: unchanged", 512, unit="pixels"
    )
    worker_timeout: float = option(
        "with several workers, how long to wait at the start until all have started",
        600,
        unit="seconds",
    )
    overfit_batch: bool = option(
        "train on the first batch only, and fail if the loss does not fall to a tenth", False
    )
    profile_steps: tuple[int, ...] = option(
        "first and last step of a profile for TensorBoard; empty: none", (), unit="steps"
    )

    def __post_init__(self):
        super().__post_init__()
        at_least(
            self,
            batch_size=1,
            accumulate=1,
            epochs=1,
            log_every=1,
            checkpoint_every=1,
            keep_checkpoints=1,
            max_steps=0,
            warmup_epochs=0,
            weight_decay=0,
            clip_norm=0,
            validate_every=0,
            retrieval_image_size=0,
            backbone_lr=0,
            whiten_shrinkage=0,
            attention_loss=0,
            worker_timeout=0,
        )
        for name in ("ema_decay", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup_epochs={self.warmup_epochs} must be less than --epochs={self.epochs}"
            )
        if self.initial_lr <= 0:
            raise InputError(f"--initial_lr={self.initial_lr} must be above 0")
        if self.profile_steps and (
            len(self.profile_steps) != 2 or not 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise InputError(
                f"--profile_steps={','.join(map(str, self.profile_steps))} must be two steps, the "
                "first at least 1 and not after the last"
            )
        if self.sync_batch_norm and self.freeze_batch_norm:
            raise InputError(
                "--sync_batch_norm and --freeze_batch_norm exclude each other; omit one"
            )
        if self.recompute and self.jit_compile:
            raise InputError(
                "--recompute and --jit_compile exclude each other, since XLA merges the second "
                "computation with the first and saves no memory; omit one"
            )
        if self.recompute and not self.backbone_lr:
            raise InputError(
                "--recompute saves nothing with --backbone_lr=0, which has no backward pass "
                "through the backbone; omit it"
            )
        if self.jit_compile and self.deterministic:
            raise InputError(
                "--jit_compile and --deterministic exclude each other, since XLA's gradient of max "
                "pooling is not deterministic; omit one"
            )


def check_inputs(data: DataConfig, training: TrainingConfig) -> None:
    """Looks for records and weights, as far as that can be done at once.

    Raises:
      InputError: naming what is not there.
    """
    if pathlib.Path(training.logdir).is_file():
        raise InputError(f"--logdir={training.logdir} is a file; give a folder, or a new name")
    classes.with_classes(data)
    for pattern in filter(None, (data.train_file_pattern, data.validation_file_pattern)):
        tfrecord.check_files(pattern, data.skip_bad_records)
    if has_begun(training.logdir):
        return
    if training.init_from:
        need_dolg(find_network(training.init_from)[0], training.init_from, "init_from")
    elif training.backbone_weights != published.NONE:
        published.find_file(training.backbone_weights)
