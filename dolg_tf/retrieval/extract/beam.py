"""Extraction on Apache Beam, for sets that outgrow one machine.

    dolg extract-beam --saved_model=MODEL --images=PHOTOS --output=SET \\
        --runner=FlinkRunner --beam_options=flink_master=HOST:8081

The output is that of `dolg extract`; either command resumes what the other began. All workers need
the photos, the model and the output at the same paths, on a shared disk, and this package with its
extra `beam`; docs/retrieval.md shows how.
"""

import dataclasses
import functools
import logging
import os

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import stage
from dolg_tf.retrieval.extract.model import open_describer
from dolg_tf.retrieval.extract.photos import list_photos
from dolg_tf.retrieval.extract.stage import ExtractConfig
from dolg_tf.stage import installed
from dolg_tf.stage.config import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig(ExtractConfig):
    """Which photos are described, by which network and runner."""

    # Beam's own default tries to download a runner first.
    runner: str = option(
        "Beam's runner: FnApiRunner on this machine, FlinkRunner, SparkRunner, DataflowRunner, ...",
        "FnApiRunner",
    )
    beam_options: tuple[str, ...] = option(
        "Beam's own options, as name=value or name, separated by commas", ()
    )


def extract_beam(settings: BeamConfig) -> DescriptorSet | None:
    """Extracts descriptors on Apache Beam: a SavedModel and photos in, a descriptor set out.

    The set equals that of `extract`, up to the rounding of other batches. Shards are done in
    rounds. After an interruption the same command continues with the unfinished round. Too many bad
    photos are reported at the end of their round, and the finished shards stay.

    Returns:
      The set; None when --shard's part is done but others are not.

    Raises:
      InputError: as `extract` does; or when Apache Beam is not installed or does not know an
        option.
    """
    installed.need("beam", "extraction by Beam", "apache_beam")
    # Before the seconds that importing Beam takes.
    describer = open_describer(os.path.abspath(settings.saved_model), settings.scales)  # noqa: PTH100
    listing = list_photos(settings)

    from dolg_tf.retrieval.extract import beam_rounds

    if settings.runner == beam_rounds.LOCAL:
        # It also raises what it logs; a cluster's runner logs where its jobs can be watched.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    options = beam_rounds.pipeline_options(settings.runner, settings.beam_options)
    do_part = functools.partial(beam_rounds.do_part, options=options)
    return stage.describe_photos(
        settings, describer, settings.dtype, settings.part, do_part, listing
    )
