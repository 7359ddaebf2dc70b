"""Photos become descriptors on Apache Beam, for sets that outgrow one machine.

    dolg extract-beam --saved_model=MODEL --images=PHOTOS --output=SET \\
        --runner=FlinkRunner --beam_options=flink_master=HOST:8081

What comes out is what `dolg extract` writes; either goes on where the other was
interrupted. All workers see photos, model and output at the same paths, on a shared disk, and have
this package installed with its extra `beam`; docs/retrieval.md shows how.
"""

import dataclasses
import functools
import logging
import os

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import stage
from dolg_tf.retrieval.extract.model import open_describer
from dolg_tf.retrieval.extract.stage import ExtractConfig
from dolg_tf.stage.config import InputError, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig(ExtractConfig):
    """Which photos go through which network, and where."""

    # Beam's own default first tries to download a runner.
    runner: str = option(
        "of Beam: FnApiRunner on this machine, FlinkRunner, SparkRunner, DataflowRunner, ...",
        "FnApiRunner",
    )
    beam_options: tuple[str, ...] = option(
        "Beam's own options, as name=value or name, with commas between them", ()
    )


def extract_beam(settings: BeamConfig) -> DescriptorSet | None:
    """Extracts descriptors on Apache Beam: a SavedModel and photos in, a descriptor set out.

    The set is equal to that of `extract`, up to the rounding of other batches. Shards are done in
    rounds. After an interruption the same command goes on with the round that was not finished;
    too many bad photos are found when their round is done, and the shards stay.

    Returns:
      The set; None when --shard's part is done and others are not.

    Raises:
      InputError: as `extract` does; or when Apache Beam is not installed or does not know an
        option.
    """
    try:
        from dolg_tf.retrieval.extract import beam_rounds
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise InputError("Apache Beam is not installed: pip install 'dolg_tf[beam]'") from error
    if settings.runner == beam_rounds.LOCAL:
        # What it logs is raised too; a cluster's runner says where its jobs can be watched.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    options = beam_rounds.pipeline_options(settings.runner, settings.beam_options)
    describer = open_describer(os.path.abspath(settings.saved_model), settings.scales)  # noqa: PTH100
    do_part = functools.partial(beam_rounds.do_part, options=options)
    return stage.describe_photos(settings, describer, settings.dtype, settings.part, do_part)
