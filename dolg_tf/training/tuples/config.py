"""Configuration of HOW's training.

No TensorFlow here, as in `dolg_tf.stage.config`.
"""

import dataclasses
import math

from dolg_tf.stage.config import InputError, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuplesData:
    """The photos that tuples are made of."""

    photos: str = option(
        "labels.csv with the columns path and landmark, or retrieval-SfM-120k.pkl, beside the "
        "folder ims of its photos"
    )
    image_root: str = option("folder of the photos; empty: the folder of --photos", "")
    image_size: int = option("longest side of a photo; larger ones are shrunk", 1024, unit="pixels")

    def __post_init__(self):
        at_least(self, image_size=32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuplesTraining:
    """How HOW's network is trained.

    The defaults are the authors' for their ResNet-50.
    """

    logdir: str = option("run directory: checkpoints, metrics, configuration")
    backbone_weights: str = option(
        "ImageNet weights of the backbone, as in `dolg train`; or none", "none"
    )
    restore: str = option(
        "which checkpoint of the run directory to continue from",
        "latest",
        choices=("latest", "previous"),
    )
    # The whitening.
    whitening_photos: int = option("photos that the whitening is learned from", 5000)
    whitening_features: int = option("strongest features of each of them", 1000)
    # Tuples.
    pairs: int = option("pairs of query and positive per epoch", 2000)
    pool: int = option("photos per epoch that negatives are chosen from", 20000)
    negatives: int = option(
        "negatives per query, the most similar of the pool, each of another landmark", 5
    )
    tuples: int = option("tuples per step, whose gradients are summed", 5)
    margin: float = option("distance from which a negative costs nothing", 0.8)
    # Steps.
    epochs: int = option("passes over new pairs and a new pool", 20)
    max_steps: int = option("stop after this many steps; 0: after the last epoch", 0, unit="steps")
    learning_rate: float = option("learning rate of Adam in the first epoch", 1e-6)
    rate_decay: float = option("what each epoch multiplies the learning rate by", 0.99)
    weight_decay: float = option("weight decay of all weights, an L2 term in the gradient", 1e-4)
    deterministic: bool = option("make runs equal, bit for bit; slower", False)
    seed: int = option("seed of initialisation, pairs and pools", 0)
    # Monitoring.
    log_every: int = option("interval of lines in the log", 10, unit="steps")
    checkpoint_every: int = option("interval of checkpoints", 100, unit="steps")
    keep_checkpoints: int = option("how many of the latest checkpoints to keep", 2)
    validate_every: int = option("interval of validations", 5, unit="epochs")
    retrieval_ground_truth: str = option(
        "gnd_*.pkl of a retrieval set to search at each validation, by ASMK, or by the "
        "descriptor that is trained, see --validation_words; the best checkpoint is then the one "
        "with the highest medium mAP; empty: none",
        "",
    )
    validation_words: int = option(
        "words of the ASMK that the retrieval set is searched by, learned from the first 20,000 "
        "training photos; the authors' are 65536; 0: it is searched by the descriptor instead",
        0,
    )
    retrieval_image_root: str = option(
        "folder of its photos; empty: the folder of the ground truth", ""
    )
    retrieval_image_size: int = option(
        "longest side of its photos, at one scale; 0: unchanged", 1024, unit="pixels"
    )

    def __post_init__(self):
        counts = "whitening_photos whitening_features pairs pool negatives tuples epochs log_every"
        counts = f"{counts} checkpoint_every keep_checkpoints validate_every"
        at_least(self, max_steps=0, seed=0, weight_decay=0, retrieval_image_size=0)
        at_least(self, validation_words=0)
        at_least(self, **dict.fromkeys(counts.split(), 1))
        for name in ("learning_rate", "rate_decay", "margin"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name}={getattr(self, name)} must be above 0")
        if self.pairs < self.tuples:
            raise InputError(
                f"--pairs={self.pairs} are less than the --tuples={self.tuples} of a step"
            )
        if self.seed >= 2**31:
            raise InputError(f"--seed={self.seed} must be below {2**31}")
