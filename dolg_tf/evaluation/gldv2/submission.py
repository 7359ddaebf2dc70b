"""Descriptor sets -> a submission to Kaggle's landmark challenges.

    dolg submit --task=recognition --query_descriptors=test \\
        --index_descriptors=train --train_csv=train.csv --sample_submission=sample_submission.csv \\
        --output=submission.csv
"""

import dataclasses
import logging
import pathlib

from dolg_tf.evaluation.gldv2 import kaggle_csv
from dolg_tf.evaluation.gldv2.predictions import PredictionsConfig, predictions
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmissionConfig(PredictionsConfig):
    """The predictions, and where the submission goes."""

    sample_submission: str = option(
        "Kaggle's sample_submission.csv: the ids of the submission, in its order; empty: all "
        "queries in their order, then those that could not be read",
        "",
    )
    output: str = option("submission.csv to write")

    def __post_init__(self):
        super().__post_init__()
        if pathlib.Path(self.output).is_dir():
            raise InputError(f"--output={self.output} is a folder; name the CSV in it")


def write_submission(settings: SubmissionConfig) -> pathlib.Path:
    """Writes a Kaggle submission: the 100 nearest index photos of each query, or its landmark.

    After an interruption, the same command continues where it stopped. The landmark is the one with
    the highest sum of similarities among the nearest training photos; of a tie the lower one.
    Photos are named by the last part of their ids. A query whose photo could not be read gets an
    empty row.

    Raises:
      InputError: when the sets do not fit together, a photo of the sample submission has no
        descriptor, two photos share an id, or a training photo has no label.
    """
    wanted = None
    if settings.sample_submission:
        wanted = kaggle_csv.read_sample(settings.sample_submission, settings.task)
    output = pathlib.Path(settings.output)
    with predictions(settings, wanted, output) as found:
        kaggle_csv.write_predictions(output, settings.task, found)
    log.info("%s: written", output)
    return output
