"""The TFDS builder: TFDS's own test case, and the same records as the records builder's."""

import json
import logging
import pathlib
import tarfile
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from gldv2_files import jpeg, name_of, put, settings, write_gldv2
from PIL import Image

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.data.records import tfrecord
from dolg_tf.data.records.build import build_records
from dolg_tf.stage.config import InputError

WHY = "install the extra: pip install -e '.[tfds]'"
tfds = pytest.importorskip("tensorflow_datasets", reason=WHY)
beam = pytest.importorskip("apache_beam", reason=WHY)
from dolg_tf.data import tfds_builder  # noqa: E402 - it needs the two


@pytest.fixture(autouse=True, scope="module")
def runner():
    """Beam in this process; by default it would load another runner from the network."""
    with pytest.MonkeyPatch.context() as patch:
        options = beam.options.pipeline_options.StandardOptions
        patch.setattr(options, "DEFAULT_RUNNER", "FnApiRunner")
        patch.setattr("sys.argv", ["pytest"])  # which Beam takes for its own
        patch.setattr(tfds_builder, "_CHUNK", 5)
        yield


class TestOfTfds(tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of a builder."""

    DATASET_CLASS = tfds_builder.DolgLandmarks
    BUILDER_CONFIG_NAMES_TO_TEST = ["gld_v2_clean"]  # noqa: RUF012 - as TFDS has it
    SPLITS = {"train": 13, "validation": 3}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = cls.enterClassContext(tempfile.TemporaryDirectory())
        write_gldv2(pathlib.Path(cls.EXAMPLE_DIR))
        super().setUpClass()


def build(manual, data_dir, config="gld_v2_clean"):
    """Returns the folder of the finished dataset."""
    builder = tfds_builder.DolgLandmarks(data_dir=data_dir, config=config)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual, num_shards=2)
    )
    return pathlib.Path(builder.data_dir)


def serialized(pattern):
    paths = sorted(tf.io.gfile.glob(str(pattern)))
    assert paths
    return [data.numpy() for data in tf.data.TFRecordDataset(paths)]


def examples(folder, pattern):
    """Returns [{key: value}] of the records, in their order."""
    found = []
    for data in serialized(folder / pattern):
        features = tf.train.Example.FromString(data).features.feature
        found.append({key: feature.SerializeToString() for key, feature in features.items()})
    return found


def by_id(folder, pattern):
    found = {example["image/id"]: example for example in examples(folder, pattern)}
    assert len(found) == len(examples(folder, pattern))
    return found


@pytest.fixture(scope="module")
def gldv2(tmp_path_factory):
    """A folder with every kind of photo, their records (`records`) and the dataset (`dataset`)."""
    folder = tmp_path_factory.mktemp("gldv2")
    write_gldv2(folder)
    root, exif = folder / "train", Image.Exif()
    exif[0x0112] = 6
    put(root, name_of(0), jpeg(0, "L"))
    put(root, name_of(1), jpeg(1, "CMYK", exif=exif))
    put(root, name_of(2), jpeg(2, "RGBA", "PNG"))
    put(root, name_of(3), jpeg(3, exif=exif))
    put(root, name_of(4), jpeg(4)).unlink()
    put(root, name_of(5), jpeg(5)[:300])
    put(root, name_of(7), jpeg(7, "I", "TIFF"))
    put(root, name_of(15), b"")  # the only photo of landmark 8
    build_records(settings(folder))
    build(folder, folder / "tfds").rename(folder / "dataset")
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_same_records_as_the_records_builder(gldv2, split):
    found = by_id(gldv2 / "dataset", f"dolg_landmarks-{split}.tfrecord-*-of-*")
    assert found == by_id(gldv2 / "records", f"{split}-*")
    summary = json.loads((gldv2 / "records" / "records.json").read_text())
    assert len(found) == summary[split] > 0


def test_the_same_lists_as_the_records_builder(gldv2):
    ours, theirs = gldv2 / "records", gldv2 / "dataset"
    for name in ("relabeling.csv", "class_counts.csv"):
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
    odd = [(folder / "odd_photos.tsv").read_text().splitlines() for folder in (ours, theirs)]
    assert odd[0][0] == odd[1][0] and sorted(odd[0]) == sorted(odd[1])
    label = tfds.builder_from_directory(theirs).info.features["image"]["class"]["label"]
    assert label.names == ["8", "70", "900"]


def test_another_build_from_tars_is_equal(gldv2, tmp_path, caplog):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_bytes((gldv2 / "train.csv").read_bytes())
    with tarfile.open(tmp_path / "train" / "images_000.tar", "w") as archive:
        archive.add(gldv2 / "train", ".")
    with caplog.at_level(logging.INFO, "dolg_tf.data.tfds_builder"):
        again = build(tmp_path, tmp_path / "tfds", "gld_v2")
    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in (gldv2 / "dataset").iterdir())
    for split in ("train", "validation"):
        pattern = f"*-{split}.tfrecord-*"
        assert examples(again, pattern) == examples(gldv2 / "dataset", pattern)
    assert "3 landmarks, 16 photos, of which 4 are left out" in caplog.text
    assert "1 missing, 2 corrupt, 1 unsupported, 1 non_jpeg, 1 grey, 1 cmyk" in caplog.text


def test_training_reads_them(gldv2):
    pattern = str(gldv2 / "dataset" / "dolg_landmarks-train.tfrecord-*-of-*")
    data = DataConfig(train_file_pattern=pattern, num_classes=3, image_size=32, augment_crop=False)
    photos = TrainingInput(data, batch_size=4, seed=0)
    labels = [int(tfrecord.parse(record)["label"]) for record in serialized(pattern)]
    assert photos.num_photos == len(labels)
    batches = list(photos.dataset(0, photos.steps_per_epoch))
    assert len(batches) == len(labels) // 4 > 1
    for step, (images, found, *_) in enumerate(batches):
        assert images.shape == (4, 32, 32, 3) and np.ptp(images.numpy()) > 0.2
        numbers = photos.photos_of_step(step)[0].numpy()
        assert found.numpy().tolist() == [labels[number] for number in numbers]


def test_own_photos(tmp_path):
    (tmp_path / "a.b.jpg").write_bytes(jpeg(0))
    (tmp_path / "c.png").write_bytes(jpeg(1, kind="PNG"))
    rows = [
        "path,landmark,split",
        "a.b.jpg,tower,train",
        "c.png,bridge,train",
        "d.jpg,bridge,query",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    config = tfds_builder.LandmarksConfig(name="mine", labels_csv="labels.csv")
    folder = build(tmp_path, tmp_path / "tfds", config)
    features = tfds.builder_from_directory(folder).info.features
    assert features["image"]["class"]["label"].names == ["bridge", "tower"]
    found = examples(folder, "*-train.tfrecord-*")
    assert len(found) == 2 and not list(folder.glob("*validation*"))  # one photo a landmark
    decoders = {"image": {"encoded": tfds.decode.SkipDecoding()}}
    dataset = tfds.builder_from_directory(folder).as_dataset(split="train", decoders=decoders)
    photos = {p["image"]["id"].numpy(): p["image"] for p in dataset}
    labels = {key: int(photo["class"]["label"]) for key, photo in photos.items()}
    assert labels == {b"a.b": 1, b"c": 0}
    assert photos[b"a.b"]["encoded"].numpy() == jpeg(0)


def test_faults(tmp_path):
    write_gldv2(tmp_path)
    put(tmp_path / "train", name_of(3), b"no photo")

    def fails(error, message, **options):
        options = {"images_dir": "train", "train_csv": "train.csv"} | options
        config = tfds_builder.LandmarksConfig(name="x", **options)
        with pytest.raises(error, match=message):
            build(tmp_path, tmp_path / "tfds", config)

    corrupt = rf"{name_of(3)}\.jpg: corrupt: not a picture \(image .*; strict\)"
    fails(Exception, corrupt, strict=True)
    fails(InputError, r"none of the 16 photos exists, such as .*else/.*\.jpg", images_dir="else")
    fails(InputError, r"train\.tsv: no such file", train_csv="train.tsv")
    fails(InputError, r"validation_fraction=1\.0", validation_fraction=1.0)
    assert not list(tmp_path.glob("tfds/**/*.tfrecord*"))
