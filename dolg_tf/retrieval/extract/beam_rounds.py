"""Shards of a descriptor set on Apache Beam, a few at a time.

Separate from `beam`, whose flags and help must work where Apache Beam is not installed.

The photos of each shard are listed in a file in the set's folder, Beam's workers write the rows of
a shard to another file, and the process that started them writes the shard. So neither a pipeline's
graph nor that process ever holds more than a few photos or rows.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import create_runner

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import ahead, batches
from dolg_tf.retrieval.extract import shards as unfinished
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import Describe
from dolg_tf.retrieval.extract.photos import Listing, Photo, PhotosConfig
from dolg_tf.retrieval.extract.shards import UnfinishedSet
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_ROUND = 64  # shards per pipeline: what an interruption loses, and a runner may hold in memory
_CHUNK = 64  # photos that a worker takes at a time
_BAD = "bad"
LOCAL = "FnApiRunner"


def pipeline_options(runner: str, others: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options.

    Args:
      runner: name of the runner.
      others: "name=value" or "name", without dashes.

    Raises:
      InputError: when the runner is unknown, a value does not fit its option, a required option is
        missing, or the local runner does not know an option (a cluster's runner may have options
        that are not known here).
    """
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"--runner={runner}: {error}") from error
    options = PipelineOptions([f"--runner={runner}", *(f"--{option}" for option in others)])
    try:
        known = options.get_all_options()
    except SystemExit as error:  # argparse has printed why
        raise InputError(f"--beam_options={','.join(others)}: Beam does not accept them") from error
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(known)
    if unknown and runner == LOCAL:
        raise InputError(f"--beam_options: Beam has no option {sorted(unknown)[0]!r}")
    try:
        beam.Pipeline(options=options)  # checks what the runner needs
    except ValueError as error:
        raise InputError(f"--beam_options with --runner={runner}: {error}") from error
    return options


# --- on the workers ------------------------------------------------------------------


class _Load(beam.DoFn):
    """(shard, first, end) -> ((shard, row), uint8 (H, W, 3)) of these photos.

    The output `_BAD` has ((shard, row), {"id", "reason"}) of the unreadable ones.
    """

    def __init__(self, folder: pathlib.Path, how: Preparation):
        self._folder, self._how = folder, how

    def process(self, chunk: tuple[int, int, int]) -> Iterator:
        shard, first, end = chunk
        listed = json.loads(_list_file(self._folder, shard).read_text(encoding="utf-8"))
        photos = [Photo(**one | {"box": one["box"] and tuple(one["box"])}) for one in listed]
        images = ahead.decode_ahead(photos[first:end], self._how)
        for row, image in enumerate(images, first):
            if isinstance(image, str):
                bad = unfinished.bad_photo(photos[row].id, image)
                yield beam.pvalue.TaggedOutput(_BAD, ((shard, row), bad))
            else:
                yield (shard, row), image


class DescribeHandler(ModelHandler[np.ndarray, np.ndarray, Describe]):
    """Describes photos of any sizes, within Beam's `KeyedModelHandler`.

    Beam's own handler cannot open SavedModels written by Keras 3
    (https://github.com/apache/beam/issues/30616).

    Args:
      load: returns uint8 (B, H, W, 3) -> float32 (B, D).
      batch_size: photos of equal size per batch.
    """

    def __init__(self, load: Callable[[], Describe], batch_size: int):
        super().__init__()
        self._load, self._batch_size = load, batch_size

    def load_model(self) -> Describe:
        return self._load()

    def run_inference(
        self, batch: Sequence[np.ndarray], model: Describe, inference_args=None
    ) -> Iterable[np.ndarray]:
        count = len(batch)
        return batches.describe_batches(enumerate(batch), model, count, self._batch_size)[0]

    def batch_elements_kwargs(self) -> dict:
        # By bytes, not by what Beam finds fastest: batches take memory.
        most = batches.WAITING_BYTES

        def size(keyed):
            return min(keyed[1].nbytes, most)

        return {"min_batch_size": most, "max_batch_size": most, "element_size_fn": size}

    def get_num_bytes(self, batch: Sequence[np.ndarray]) -> int:
        return sum(image.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        return "dolg_tf"


def _by_shard(
    keyed: tuple,
) -> tuple[int, tuple]:  # Beam reads the annotation: GroupByKey needs a pair
    """((shard, row), value) -> (shard, (row, value))."""
    (shard, row), value = keyed
    return shard, (row, value)


def _save(grouped: tuple, folder: pathlib.Path) -> None:
    """(shard, (row, descriptor or bad photo) of each photo) -> the file of its rows."""
    shard, found = grouped
    values = [value for _, value in sorted(found, key=lambda one: one[0])]
    rows = [value for value in values if isinstance(value, np.ndarray)]
    bad = [value for value in values if isinstance(value, dict)]
    rows = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
    with files.atomic_path(_rows_file(folder, shard)) as temporary:
        np.savez(temporary, rows=rows, bad=np.array(json.dumps(bad)))


def _list_file(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f"photos-{shard:05d}.json"


def _rows_file(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f"rows-{shard:05d}.npz"


# --- in the process that starts them -------------------------------------------------


def _pipeline(
    chunks: list[tuple[int, int, int]],
    folder: pathlib.Path,
    how: Preparation,
    handler: DescribeHandler,
    options: PipelineOptions,
) -> beam.Pipeline:
    """Returns a pipeline for the chunks, (shard, first, end) each, of whole shards."""
    pipeline = beam.Pipeline(options=options)
    loaded = (
        pipeline
        | "Chunks" >> beam.Create(chunks)
        | "Spread" >> beam.Reshuffle()
        | "Load" >> beam.ParDo(_Load(folder, how)).with_outputs(_BAD, main="good")
    )
    described = loaded.good | "Describe" >> RunInference(KeyedModelHandler(handler))
    _ = (
        (described, loaded[_BAD])
        | "Both" >> beam.Flatten()
        | "By shard" >> beam.Map(_by_shard)
        | "Group" >> beam.GroupByKey()
        | "Save" >> beam.Map(_save, folder=folder)
    )
    return pipeline


def _run(pipeline: beam.Pipeline) -> None:
    """Runs a pipeline to its end; errors of its workers are raised as if they were ours."""
    try:
        result = pipeline.run()
        try:
            result.wait_until_finish()
        except KeyboardInterrupt:
            result.cancel()  # otherwise a cluster would continue
            raise
    except InputError as error:
        raise InputError(str(error).split(" [while running")[0]) from error
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from error
        # From a worker in another process only the text arrives.
        said = re.search(r"InputError: (.*?)(?= \[while running|$)", str(error), re.MULTILINE)
        if said:
            raise InputError(said[1]) from error
        raise


def do_part(
    work: UnfinishedSet,
    settings: PhotosConfig,
    listing: Listing,
    load: Callable[[], Describe],
    part: tuple[int, int],
    options: PipelineOptions,
) -> None:
    """Describes and writes the unfinished shards of a part; see `stage.describe_photos`.

    Raises:
      InputError: when there are too many bad photos. The finished shards stay.
    """
    done = work.done()
    todo = [shard for shard in range(part[0], work.count, part[1]) if shard not in done]
    bad = [one for shard in done.values() for one in shard.bad]
    if done:
        log.info("%s: %d of %d shards are done already", work.path, len(done), work.count)
    handler = DescribeHandler(load, settings.batch_size)
    folder = work.path.resolve() / descriptors.UNFINISHED / f"beam-{part[0]}-of-{part[1]}"
    rounds = [todo[start : start + _ROUND] for start in range(0, len(todo), _ROUND)]
    try:
        for shards in progress.track(rounds, len(rounds), "extract", "rounds"):
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
            folder.mkdir(parents=True)
            chunks = []
            for shard in shards:
                first, end = work.span(shard)
                _write_list(_list_file(folder, shard), listing.photos[first:end])
                starts = range(0, end - first, _CHUNK)
                chunks += [(shard, at, min(at + _CHUNK, end - first)) for at in starts]
            _run(_pipeline(chunks, folder, Preparation.asked(settings), handler, options))
            for shard in shards:
                rows, found = _read_rows(_rows_file(folder, shard))
                work.write(shard, rows, found)
                bad += found
            if len(bad) > settings.max_bad:
                raise unfinished.too_many_bad(bad, settings.max_bad)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_list(path: pathlib.Path, photos: Sequence[Photo]) -> None:
    # Absolute: workers have working directories of their own.
    listed = [
        dataclasses.asdict(photo) | {"file": os.path.abspath(photo.file)}  # noqa: PTH100
        for photo in photos
    ]
    path.write_text(json.dumps(listed), encoding="utf-8")


def _read_rows(path: pathlib.Path) -> tuple[np.ndarray, list[dict]]:
    if not path.exists():
        raise InputError(
            f"{path}: Beam's workers did not write it; check that they can reach this folder"
        )
    with np.load(path) as found:
        bad = json.loads(str(found["bad"]))
        for one in bad:
            log.warning("unreadable photo %s", one["reason"])
        return found["rows"], bad
