"""The records of `records.build` as a TFDS builder: same lists, labels, split, photos and keys.

    tfds build dolg_landmarks/gld_v2_clean --imports=dolg_tf.data.tfds_builder \
        --manual_dir=gldv2 --data_dir=datasets --beam_pipeline_options=runner=FnApiRunner

DolgLandmarks.MANUAL_DOWNLOAD_INSTRUCTIONS says what the manual directory holds. Beam's local
runners keep all photos in memory until they are written. The whole of GLDv2 needs a cluster's
runner and directories that the cluster shares; `dolg records` needs neither.

Importing this module registers the dataset with TFDS, so nothing else in the package imports it.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dolg_tf.data.records import build, classes, label_lists, shards, tars
from dolg_tf.data.records.build import RecordsConfig
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_ODD = "odd"  # the output of odd photos, beside one per split
_NOTE, _TARS = ".odd.json", ".tars"  # in the dataset's folder while it is built
_CHUNK = 256  # photos that a worker takes at once


@dataclasses.dataclass(eq=False)
class LandmarksConfig(tfds.core.BuilderConfig):
    """Which photos, and how they are split: options of `records.build.RecordsConfig`.

    Files and folders are relative to TFDS's manual directory.
    """

    images_dir: str = ""
    train_csv: str = ""
    train_clean_csv: str = ""
    labels_csv: str = ""
    exclude: str = ""
    validation_fraction: float = 0.2
    seed: int = 0
    strict: bool = False
    upright: bool | None = None

    @property
    def turned(self) -> bool:
        """Whether photos are turned by their EXIF orientation, as `RecordsConfig.rule` has it."""
        return bool(self.labels_csv) if self.upright is None else self.upright

    def settings(self, manual: epath.Path, output: epath.Path) -> RecordsConfig:
        """Returns the records builder's configuration for the same photos."""
        names = ("images_dir", "train_csv", "train_clean_csv", "labels_csv", "exclude")
        return RecordsConfig(
            **{name: str(manual / getattr(self, name)) for name in names if getattr(self, name)},
            output_dir=str(output),
            validation_fraction=self.validation_fraction,
            seed=self.seed,
            strict=self.strict,
            upright=self.turned,
        )


def _read_lists(settings: RecordsConfig) -> tuple[label_lists.PhotoTable, list, np.ndarray]:
    """Returns the photos, the landmark of each label, and which photos are for validation."""
    photos, landmarks = label_lists.read_photos(settings)
    if settings.in_tars:
        # Every tar is scanned once: the workers find the notes.
        notes = pathlib.Path(settings.output_dir) / _TARS
        photos = tars.locate(photos, notes, processes=settings.processes)
    split = build.split_photos(photos.labels, settings.validation_fraction, settings.seed)
    in_validation = np.zeros(len(photos), bool)
    in_validation[split["validation"]] = True
    return photos, landmarks, in_validation


class _Convert(beam.DoFn):
    """The number of a chunk's first photo -> (id, example) of its photos, by split.

    The output `_ODD` has number, kind and detail of the photos that are left out or changed.
    Each worker reads the lists itself: 4.1 million photos are too many for a pipeline's graph.
    """

    def __init__(self, settings: RecordsConfig):
        self._settings = dataclasses.replace(settings, processes=1)

    def setup(self):
        self._photos, _, self._in_validation = _read_lists(self._settings)

    def process(self, first: int) -> Iterator:
        for number in range(first, min(first + _CHUNK, len(self._photos))):
            yield from self._outputs(number)

    def _outputs(self, number: int) -> Iterator:
        def odd(kind, detail):
            beam.metrics.Metrics.counter("dolg_tf", kind).inc()
            return beam.pvalue.TaggedOutput(_ODD, (number, kind, detail))

        photo = self._photos[number]
        try:
            encoded = shards.encode_photo(shards.read_photo(photo), self._settings.rule)
        except shards.UnusablePhoto as error:
            if self._settings.strict:
                raise InputError(f"{photo.path}: {error} (image {photo.id}; strict)") from error
            yield odd(error.kind, error.reason)
            return
        for kind, detail in encoded.oddities():
            yield odd(kind, detail)
        split = "validation" if self._in_validation[number] else "train"
        image = {
            "channels": 3,
            "class": {"label": photo.label},
            "colorspace": "RGB",
            "encoded": encoded.jpeg,
            "format": "JPEG",
            "height": encoded.height,
            "id": photo.id,
            "width": encoded.width,
        }
        if self._settings.rule.upright:
            image["upright"] = 1
        yield beam.pvalue.TaggedOutput(split, (photo.id, {"image": image}))


def _write_odd(odd: list[tuple[int, str, str]], path: str) -> None:
    epath.Path(path).write_text(json.dumps(sorted(odd)))


def _convert(pipeline: beam.Pipeline, settings: RecordsConfig, num_photos: int, note: str):
    """Returns the outputs of `_Convert` by name, and has the odd photos written to `note`."""
    outputs = (
        pipeline
        | "Chunks" >> beam.Create(range(0, num_photos, _CHUNK))
        | "Spread" >> beam.Reshuffle()
        | "Convert" >> beam.ParDo(_Convert(settings)).with_outputs(_ODD, "train", "validation")
    )
    odd = outputs[_ODD] | "Odd photos" >> beam.combiners.ToList()
    _ = odd | "Note them" >> beam.Map(_write_odd, path=note)
    return outputs


class DolgLandmarks(tfds.core.GeneratorBasedBuilder):
    """Google Landmarks v2, or your own photos, with DELG's keys.

    Odd photos are treated as in `records.build`. Beside the files of TFDS lie `relabeling.csv`,
    `class_counts.csv` and, if there are any odd photos, `odd_photos.tsv`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first one."}  # noqa: RUF012 - the names are TFDS's
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download GLDv2's training set (https://github.com/cvdfoundation/google-landmark) into a folder:
    train.csv, train_clean.csv, and in a folder `train` the photos a/b/c/ID.jpg or the tars
    images_000.tar to images_499.tar. Your own photos need a CSV with the columns path,landmark and
    a configuration such as {"name": "mine", "labels_csv": "labels.csv"}.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        LandmarksConfig(
            name="gld_v2",
            description="The training set of GLDv2: 4,132,914 photos of 203,094 landmarks.",
            images_dir="train",
            train_csv="train.csv",
        ),
        LandmarksConfig(
            name="gld_v2_clean",
            description="Its cleaned part: 1,580,470 photos of 81,313 landmarks.",
            images_dir="train",
            train_clean_csv="train_clean.csv",
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "gld_v2_clean"

    def _info(self) -> tfds.core.DatasetInfo:
        image = {
            "channels": np.int64,
            "class": {"label": tfds.features.ClassLabel()},  # its names come with the lists
            "colorspace": tfds.features.Text(),
            "encoded": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "format": tfds.features.Text(),
            "height": np.int64,
            "id": tfds.features.Text(),
            "width": np.int64,
        }
        if self.builder_config.turned:
            image["upright"] = np.int64
        return self.dataset_info_from_configs(
            description="Photos of landmarks, with the keys of DELG's records.",
            homepage="https://github.com/cvdfoundation/google-landmark",
            features=tfds.features.FeaturesDict({"image": image}),
        )

    def _split_generators(self, dl_manager, pipeline: beam.Pipeline) -> dict:
        settings = self.builder_config.settings(dl_manager.manual_dir, self.data_path)
        self._listed = photos, landmarks, in_validation = _read_lists(settings)
        if not any(pathlib.Path(photo.path).is_file() for photo in photos):
            raise InputError(
                f"none of the {len(photos)} photos exists, such as {photos[0].path}; put them "
                "there or give another manual_dir"
            )
        self.info.features["image"]["class"]["label"].names = [str(name) for name in landmarks]
        outputs = _convert(pipeline, settings, len(photos), str(self.data_path / _NOTE))
        splits = ("train", "validation") if in_validation.any() else ("train",)
        return {split: self._generate_examples(outputs, split) for split in splits}

    def _generate_examples(self, outputs, split: str) -> beam.PCollection:
        """Returns the (id, example) of a split."""
        return outputs[split]

    def _process_pipeline_result(self, pipeline_result) -> None:
        """Writes and logs the odd photos; writes the classes."""
        photos, landmarks, in_validation = self._listed
        note = self.data_path / _NOTE
        odd = json.loads(note.read_text())
        note.unlink()
        if (self.data_path / _TARS).exists():
            (self.data_path / _TARS).rmtree()
        if odd:
            lines = [shards.odd_line(photos[number], *what) for number, *what in odd]
            (self.data_path / "odd_photos.tsv").write_text(shards.ODD_HEADER + "".join(lines))
        used = ~in_validation
        left_out = [number for number, kind, _ in odd if kind in shards.LEFT_OUT]
        used[np.array(left_out, int)] = False
        counts = np.bincount(photos.labels[used], minlength=len(landmarks))
        classes.write_classes(self.data_path, landmarks, counts)
        kinds = [kind for _, kind, _ in odd]
        listed = ", ".join(f"{kinds.count(kind)} {kind}" for kind in shards.KINDS if kind in kinds)
        log.log(
            logging.WARNING if left_out else logging.INFO,
            "%d landmarks, %d photos, of which %d are left out; odd photos: %s",
            *(len(landmarks), len(photos), len(left_out)),
            f"{listed}, see odd_photos.tsv" if odd else "0",
        )
