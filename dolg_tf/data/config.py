"""Options of the photos that training reads.

No TensorFlow here, as in `dolg_tf.stage.config`.
"""

import dataclasses

from dolg_tf.stage.config import InputError, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The photos that training reads."""

    train_file_pattern: str = option("glob of the training TFRecords")
    validation_file_pattern: str = option(
        "glob of the validation TFRecords; empty: no validation", ""
    )
    num_classes: int = option(
        "number of landmarks; labels run from 0 to this minus 1; 0: as many as the relabeling.csv "
        "beside the records lists",
        0,
        unit="classes",
    )
    image_size: int = option("side of the square training crop", 512, unit="pixels")
    augment_crop: bool = option("random crop, aspect ratio 3/4 to 4/3", True)
    crop_area_min: float = option("smallest fraction of the area that a random crop keeps", 0.08)
    augment_flip: bool = option("mirror half of the photos left to right", True)
    augment_lighting: float = option("standard deviation of the PCA lighting noise; 0: none", 0.1)
    shard_by: str = option(
        "how several workers share the photos; photo: a step has the same batch for any number of "
        "workers; file: each worker reads only its own record files",
        "photo",
        choices=("photo", "file"),
    )
    skip_bad_records: bool = option(
        "skip and count records that cannot be used, instead of stopping", False
    )

    def __post_init__(self):
        at_least(self, image_size=32)
        if self.num_classes < 2 and self.num_classes != 0:
            raise InputError(f"--num_classes={self.num_classes} must be at least 2, or 0")
        if not 0 < self.crop_area_min <= 1:
            raise InputError(f"--crop_area_min={self.crop_area_min} must be above 0 and at most 1")
