"""What flags say of the network, the photos, and how it is trained.

No TensorFlow here, as in `config`.
"""

import dataclasses

from dolg_tf.stage.config import InputError, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the network does to float32 RGB in [0, 1] before its first convolution.

    `(x[channel_order] - mean) / std`; mean and std are in that channel order.
    """

    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError(f"channel_order is {self.channel_order!r}; it must be rgb or bgr")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} must be 3 numbers, std above 0")


# What the authors' network expects (facts: trained on BGR input).
OFFICIAL_PREPROCESSING = Preprocessing(
    channel_order="bgr", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DolgConfig:
    """The network, without its class head."""

    backbone: str = option(
        "resnet18, resnet34, resnet50, resnet101, resnet152, resnet17_small, efficientnet_b0 to "
        "efficientnet_b7, or efficientnet_lite0 to efficientnet_lite4",
        "resnet50",
    )
    stride32: str = option(
        "which map of an EfficientNet is the stride-32 map: last_block, or top_conv, the 1x1 "
        "convolution behind it",
        "last_block",
        choices=("last_block", "top_conv"),
    )
    fusion: str = option(
        "what is pooled of the local features, beside the global one: orthogonal, their part that "
        "it does not explain (DOLG); concat, they themselves; hadamard, their product with it; "
        "global_only: no local branch, DELG's global descriptor",
        "orthogonal",
        choices=("orthogonal", "concat", "hadamard", "global_only"),
    )
    local_source: str = option(
        "map that the local features come from: p3 of stride 8, p4 of stride 16 (the paper's f3), "
        "p5 of stride 32 (its f4); p4+p5: a local branch and a fusion for each",
        "p4",
        choices=("p3", "p4", "p5", "p4+p5"),
    )
    local_channels: int = option(
        "width of the local and the global feature; 0: that of the stride-16 map", 0
    )
    global_layer: str = option(
        "fc: GeM, then a linear layer; conv: 1x1 convolution, batch norm and SiLU, then GeM",
        "fc",
        choices=("fc", "conv"),
    )
    global_pooling: str = option(
        "pooling of the global branch: gem, of the exponent --gem_p; learned, GeM whose exponent "
        "is trained, as in the authors' code; average",
        "gem",
        choices=("gem", "learned", "average"),
    )
    gem_p: float = option("exponent of the GeM pooling of the global branch, or its start", 3.0)
    multi_atrous: bool = option("multi-atrous convolutions at the start of the local branch", True)
    dilations: tuple[int, ...] = option(
        "dilation of each 3x3 multi-atrous convolution", (6, 12, 18), unit="cells of its map"
    )
    multi_atrous_context: bool = option(
        "pooled and 1x1 branch beside the dilated ones of the multi-atrous module", True
    )
    self_attention: bool = option("attention over the local features", True)
    fused_pooling: str = option(
        "pooling of what --fusion makes of the local features: average; gem, of exponent 3; "
        "learned, GeM whose exponent is trained from 3",
        "average",
        choices=("average", "gem", "learned"),
    )
    descriptor_size: int = option("length of the descriptor", 512)
    neck: str = option(
        "what makes the descriptor: a linear layer, or one with batch norm and PReLU behind it",
        "linear",
        choices=("linear", "bn_prelu"),
    )
    preprocessing: Preprocessing = Preprocessing()

    def __post_init__(self):
        at_least(self, descriptor_size=1, local_channels=0)
        if self.gem_p <= 0:
            raise InputError(f"--gem_p={self.gem_p} must be above 0")
        if self.fusion == "global_only" and self.local_source != "p4":
            raise InputError(
                f"--local_source={self.local_source}: --fusion=global_only has no local features; "
                "leave one of the two out"
            )
        if self.multi_atrous and (not self.dilations or min(self.dilations) < 1):
            raise InputError(
                f"--dilations={self.dilations} must be one or more numbers, each at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which weights of a run directory a command takes."""

    checkpoint: str = option(
        "which checkpoint of a run directory", "latest", choices=("latest", "best")
    )
    weights: str = option(
        "raw, or ema: their moving average, of a run with --ema_decay",
        "raw",
        choices=("raw", "ema"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(CheckpointConfig):
    """Which network on disk a command takes."""

    model_dir: str = option("run directory or model directory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The photos that training reads."""

    train_file_pattern: str = option("glob of the training TFRecords")
    validation_file_pattern: str = option(
        "glob of the validation TFRecords; empty: no validation", ""
    )
    num_classes: int = option(
        "number of landmarks, labels are 0 to this less one; 0: as many as relabeling.csv beside "
        "the records lists",
        0,
        unit="classes",
    )
    image_size: int = option("side of the square training crop", 512, unit="pixels")
    augment_crop: bool = option("random crop of 8-100 % of the area, aspect 3/4 to 4/3", True)
    crop_area_min: float = option("smallest share of the area that a random crop keeps", 0.08)
    augment_flip: bool = option("flip left to right, half of the time", True)
    augment_lighting: float = option("standard deviation of the PCA lighting noise; 0: none", 0.1)
    shard_by: str = option(
        "how several workers share the photos; photo: the batch of a step is the same for any "
        "number of workers; file: each reads its own record files alone",
        "photo",
        choices=("photo", "file"),
    )
    skip_bad_records: bool = option(
        "count and leave out records that cannot be used, instead of stopping", False
    )

    def __post_init__(self):
        at_least(self, image_size=32)
        if self.num_classes < 2 and self.num_classes != 0:
            raise InputError(f"--num_classes={self.num_classes} must be at least 2, or 0")
        if not 0 < self.crop_area_min <= 1:
            raise InputError(f"--crop_area_min={self.crop_area_min} must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the network is trained."""

    logdir: str = option("run directory: checkpoints, metrics, configuration")
    init_from: str = option(
        "model or run directory to start from; its network is taken as it is; empty: none", ""
    )
    backbone_weights: str = option(
        "ImageNet weights of the backbone: KerasHub preset; efficientnet_lite0 or "
        "efficientnet_lite2, of the pip package; a file .weights.h5, .keras, .pth, .pt, "
        ".pyth, .npz or .safetensors; or none",
        "none",
    )
    whiten_shrinkage: float = option(
        "above 0, the last layer starts as a whitening, learned on the training photos, that evens "
        "out how those of one landmark differ, with this share of the mean variance added to each "
        "direction: near 0 for landmarks that are trained, near 1 for others. 0: random start",
        0.0,
    )
    restore: str = option(
        "which checkpoint of the run directory to go on from",
        "latest",
        choices=("latest", "previous"),
    )
    # Batches and steps.
    batch_size: int = option("photos in a step, over all replicas", 128, unit="photos")
    accumulate: int = option(
        "pieces in which a replica's photos of a step are worked through, to save memory", 1
    )
    epochs: int = option("passes over the training photos", 100)
    max_steps: int = option("stop after this many steps; 0: after the last epoch", 0, unit="steps")
    # Learning rate.
    initial_lr: float = option("learning rate after the warm-up", 0.05)
    backbone_lr: float = option(
        "learning rate of the backbone, as a share of the others'; 0: it keeps its weights and "
        "batch statistics, and a step takes a third of the time",
        1.0,
    )
    schedule: str = option(
        "cosine: over the steps after the warm-up; cosine_by_epoch: the authors' code, over all "
        "epochs and constant inside each",
        "cosine",
        choices=("cosine", "cosine_by_epoch"),
    )
    warmup_epochs: float = option("linear warm-up of the learning rate", 5.0, unit="epochs")
    warmup_start: float = option("share of the learning rate where the warm-up starts", 0.0)
    # Optimizer.
    optimizer: str = option("sgd or adam", "sgd", choices=("sgd", "adam"))
    momentum: float = option("momentum of sgd", 0.9)
    nesterov: bool = option("Nesterov's momentum, of sgd", False)
    weight_decay: float = option("weight decay", 1e-4)
    decay: str = option(
        "coupled: an L2 term of the gradient; decoupled: beside the gradient, times learning rate",
        "coupled",
        choices=("coupled", "decoupled"),
    )
    decay_all: bool = option("decay norms, biases and exponents too, not only kernels", False)
    clip_norm: float = option("largest norm of the whole gradient; 0: unlimited", 0.0)
    ema_decay: float = option("of a moving average of the weights, by step; 0: none", 0.0)
    # Loss.
    loss: str = option(
        "margin loss of the class head",
        "arcface",
        choices=("arcface", "curricularface", "cosface", "subcenter_arcface"),
    )
    margin: float = option("margin; radians, of cosface a difference of cosines", 0.15)
    margin_range: float = option(
        "what the margin of the rarest landmark has more than that of the commonest; 0: all alike",
        0.0,
    )
    scale: float = option("scale of the cosine logits", 30.0)
    sub_centers: int = option("centres of each landmark, of subcenter_arcface", 3)
    # Batch norm and arithmetic.
    sync_batch_norm: bool = option("batch statistics over all replicas", False)
    freeze_batch_norm: bool = option(
        "batch norms run with the statistics and the affine they start from, and keep them", False
    )
    precision: str = option(
        "of the convolutions; norms, pooling, fusion and loss stay in float32",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    jit_compile: bool = option("compile the step with XLA; one device only", False)
    recompute: bool = option(
        "save memory: keep of each block of the backbone only its input, and compute the block "
        "again in the backward pass",
        False,
    )
    deterministic: bool = option("the same numbers, bit for bit, in each run; slower", False)
    seed: int = option("of initialisation, order and augmentation", 0)
    # Watching.
    log_every: int = option("between two lines of the log", 50, unit="steps")
    checkpoint_every: int = option("between two checkpoints", 1000, unit="steps")
    keep_checkpoints: int = option("how many of the latest checkpoints are kept", 2)
    validate_every: int = option(
        "between two validations; 0: at the end of each epoch", 0, unit="steps"
    )
    retrieval_ground_truth: str = option(
        "gnd_*.pkl of a retrieval set to search at each validation; the best checkpoint is then "
        "the one with the highest medium mAP; empty: none",
        "",
    )
    retrieval_image_root: str = option("folder of its photos; empty: that of the ground truth", "")
    retrieval_image_size: int = option(
        "longest side of its photos, at one scale; 0: as they are", 512, unit="pixels"
    )
    overfit_batch: bool = option(
        "train on the first batch alone; fails when the loss does not fall to a tenth", False
    )
    profile_steps: tuple[int, ...] = option(
        "first and last step of a profile for TensorBoard; empty: none", (), unit="steps"
    )

    def __post_init__(self):
        at_least(
            self,
            batch_size=1,
            accumulate=1,
            epochs=1,
            log_every=1,
            checkpoint_every=1,
            keep_checkpoints=1,
            sub_centers=1,
            max_steps=0,
            warmup_epochs=0,
            weight_decay=0,
            clip_norm=0,
            validate_every=0,
            margin_range=0,
            retrieval_image_size=0,
            backbone_lr=0,
            whiten_shrinkage=0,
        )
        for name in ("ema_decay", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup_epochs={self.warmup_epochs} must be less than --epochs={self.epochs}"
            )
        for name in ("initial_lr", "scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name}={getattr(self, name)} must be above 0")
        if self.profile_steps and (
            len(self.profile_steps) != 2 or not 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise InputError(
                f"--profile_steps={','.join(map(str, self.profile_steps))} must be two steps, the "
                "first at least 1 and not behind the last"
            )
        if self.sync_batch_norm and self.freeze_batch_norm:
            raise InputError("--sync_batch_norm and --freeze_batch_norm exclude one another")
        if self.recompute and self.jit_compile:
            raise InputError(
                "--recompute and --jit_compile exclude one another: XLA takes the second "
                "computation for the first, and saves no memory"
            )
        if self.recompute and not self.backbone_lr:
            raise InputError(
                "--recompute saves nothing with --backbone_lr=0, which has no backward pass "
                "through the backbone; leave it out"
            )
        if self.jit_compile and self.deterministic:
            raise InputError(
                "--jit_compile and --deterministic exclude one another: XLA's gradient of max "
                "pooling is not deterministic"
            )
