"""The work of each stage that `stages.py` times, and its floor."""

import dataclasses
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import timing
from commands import list_commands, run_python

from dolg_tf.data.scales import SCALE_SETS

WIDTH = 512  # numbers per descriptor
SCALES = SCALE_SETS["three"]


@dataclasses.dataclass(frozen=True)
class Case:
    """The work of a stage and its floor, ready to be timed.

    Attributes:
      work: in words, with its sizes.
      calls: functions that do it, by name; the slowest counts, and is named.
      floors: functions and the factors of their times; the least time counts.
      rounds: of timing; a single round has no warm-up.
    """

    work: str
    calls: dict[str, Callable]
    floors: list[tuple[Callable, float]]
    rounds: int = 5


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
      title: its name in the table.
      floor: what the floor is, in words.
      prepare: function of an empty folder, and whether sizes are the smallest, to its case.
    """

    title: str
    floor: str
    prepare: Callable[[pathlib.Path, bool], Case]


def arithmetic(multiply_adds: float) -> list[tuple[Callable, float]]:
    """Returns floors of float32 multiply-adds, at the rates of a product and of a convolution."""
    return [(call, multiply_adds / macs) for call, macs in timing.peaks().values()]


# --- photos -> batches ----------------------------------------------------------------------


def prepare_records(folder: pathlib.Path, quick: bool) -> Case:
    import records

    from dolg_tf.data.records.build import RecordsConfig, build_records

    count = 20 if quick else 400
    photos = records.write_photos(folder / "photos", count, 2 if quick else 10)
    parts = records.floor_parts(photos, folder)
    records.write_list(folder / "train.csv", count)

    def build():
        shutil.rmtree(folder / "out", ignore_errors=True)
        settings = RecordsConfig(
            train_csv=str(folder / "train.csv"),
            images_dir=str(folder / "photos"),
            output_dir=str(folder / "out"),
            num_shards=4,
            processes=1,
        )
        build_records(settings)

    def floor():
        for part in parts.values():
            part()

    return Case(f"{count} photos of 800x600, one process", {"": build}, [(floor, 1)])


def prepare_input(folder: pathlib.Path, quick: bool) -> Case:
    import input_pipeline as inputs

    count, size = (64, 64) if quick else (inputs.PHOTOS, 512)
    jpegs = inputs.write_records(folder, count, inputs.HEIGHT, inputs.WIDTH)
    datasets = inputs.candidates(inputs.training_input(folder, size), jpegs, size)
    each = inputs.EPOCHS * count

    def once(name):
        # A new iterator per call: what waits in the buffers of one belongs to no other's time.
        return lambda: inputs.Consumer(datasets[name], each)()

    return Case(
        f"{each} crops of {size} px of photos of 800x600, batches of {inputs.BATCH}",
        {"": once(inputs.INPUT)},
        [(once(inputs.FLOOR), 1)],
    )


# --- training -------------------------------------------------------------------------------


def _trainer(batch: int, side: int):
    """Returns a trainer for DOLG-R50 and GLDv2's classes, a batch and its multiply-adds."""
    from train_step import made_up_batch

    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.modeling.summary import count_multiply_adds
    from dolg_tf.training.config import TrainingConfig
    from dolg_tf.training.distribution import make_strategy
    from dolg_tf.training.trainer import Trainer

    settings = TrainingConfig(logdir="", batch_size=batch)
    trainer = Trainer(DolgConfig(), settings, 81313, 1000, make_strategy())
    macs = batch * sum(count_multiply_adds(trainer.network, side)[0].values())
    return trainer, made_up_batch(trainer, batch, side), macs


def _step_case(quick: bool, step: Callable, passes: int) -> Case:
    """Returns the case of step(trainer, batch), with a floor of `passes` forward passes."""
    batch, side = (1, 64) if quick else (4, 256)
    trainer, piece, macs = _trainer(batch, side)
    return Case(
        f"one step of DOLG-R50, {batch} x {side} px, 81,313 classes",
        {"": lambda: step(trainer, piece).numpy()},
        arithmetic(passes * macs),
    )


def prepare_training(folder: pathlib.Path, quick: bool) -> Case:
    return _step_case(quick, lambda trainer, piece: trainer.train_step((piece,)), 3)


def prepare_validation(folder: pathlib.Path, quick: bool) -> Case:
    return _step_case(quick, lambda trainer, piece: trainer.validation_step(piece), 1)


# --- weights -> descriptors -------------------------------------------------------------------


def _small_model(folder: pathlib.Path):
    """Writes the quickstart's network, untrained; returns it and the settings of its export."""
    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.modeling.model_dir import save_dolg
    from dolg_tf.serving.config import ExportConfig

    config = DolgConfig(backbone="resnet17_small", dilations=(1, 2))
    network = build_dolg(config, seed=0)
    save_dolg(network, config, folder / "model", {"source": "random"})
    options = {"model_dir": str(folder / "model"), "output": str(folder / "saved_model")}
    return network, ExportConfig(**options, scales=SCALES, overwrite=True)


def prepare_export(folder: pathlib.Path, quick: bool) -> Case:
    from dolg_tf.runtime.session import CppSession
    from dolg_tf.serving.export import export

    network, settings = _small_model(folder)
    path = export(settings)
    contents = [file.read_bytes() for file in path.rglob("*") if file.is_file()]

    def floor():
        (folder / "model" / "model.weights.h5").read_bytes()
        for number, content in enumerate(contents):
            (folder / f"copy{number}").write_bytes(content)
        CppSession(path)

    megabytes = sum(map(len, contents)) / 1e6
    return Case(
        f"the quickstart's network, {network.count_params() / 1e6:.1f} M parameters, to mode "
        f"serving ({megabytes:.0f} MB), with its check",
        {"": lambda: export(settings)},
        [(floor, 1)],
    )


def draw_photos(folder: pathlib.Path, count: int, side: int) -> pathlib.Path:
    """Draws `count` procedural photos, an even number, of `side` pixels; returns their folder.

    A few more photos go to other folders.
    """
    from dolg_tf.data.procedural.write import ToyConfig, write_toy

    few = {"unseen_landmarks": 1, "index_per_landmark": 3, "queries_per_landmark": 1}
    each = {"landmarks": 2, "photos_per_landmark": count // 2}
    write_toy(ToyConfig(output=str(folder), size=side, processes=1, **each, **few))
    return folder / "train"


def export_small_model(folder: pathlib.Path) -> pathlib.Path:
    from dolg_tf.serving.export import export

    return export(_small_model(folder)[1])


def prepare_extraction(folder: pathlib.Path, quick: bool) -> Case:
    from dolg_tf.retrieval.extract import batches, decoding
    from dolg_tf.retrieval.extract.model import Describer, load_model
    from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
    from dolg_tf.retrieval.extract.stage import describe_photos

    # In another process, or memory that the export leaves behind would count.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        path = pool.submit(export_small_model, folder).result()
    describe = load_model(path, SCALES).describe
    side, photos = (48, 4) if quick else (160, 120)
    images = draw_photos(folder / "toy", photos, side)
    options = PhotosConfig(images=str(images), output=str(folder / "set"))
    describer = Describer("untrained", SCALES, None, lambda: describe)

    def extract():
        shutil.rmtree(folder / "set", ignore_errors=True)
        describe_photos(options, describer)

    listed = list_photos(options).photos
    decoded = enumerate(map(decoding.load_photo, listed))
    prepared = [batch for _, batch in batches.bucket(decoded, options.batch_size)]

    def floor():
        for batch in prepared:
            describe(batch)

    return Case(
        f"{len(listed)} procedural photos of {side} px, three scales, the quickstart's network, "
        "loaded before",
        {"": extract},
        [(floor, 1)],
    )


# --- descriptors -> rankings ------------------------------------------------------------------


def prepare_index(folder: pathlib.Path, quick: bool) -> Case:
    import hashlib

    import search

    from dolg_tf.retrieval.index.stages import BuildConfig, build

    rows = 1_000 if quick else 200_000
    search.write_set(folder / "set", rows, WIDTH, 1)
    options = {"descriptors": str(folder / "set"), "output": str(folder / "index")}
    settings = BuildConfig(**options, overwrite=True)

    def floor():
        digest = hashlib.sha256()
        array = folder / "set" / "descriptors-00000-of-00001.npy"
        with array.open("rb") as file, (folder / "copy").open("wb") as copy:
            while block := file.read(1 << 24):
                copy.write(block)
                digest.update(block)

    return Case(f"exact, {rows:,} x {WIDTH}", {"": lambda: build(settings)}, [(floor, 1)])


def prepare_search(folder: pathlib.Path, quick: bool) -> Case:
    import search

    from dolg_tf.retrieval.index.stages import BuildConfig, build

    rows, queries = (1_000, 10) if quick else (200_000, 1_000)
    asked = search.write_set(folder / "set", rows, WIDTH, queries)
    options = {"descriptors": str(folder / "set"), "output": str(folder / "index")}
    built = build(BuildConfig(**options))
    return Case(
        f"exact, top 100 of {queries:,} queries in {rows:,} x {WIDTH}",
        {"": lambda: built.search(asked, 100)},
        [(lambda: search.floor(built.descriptors, asked), 1)],
    )


def prepare_evaluation(folder: pathlib.Path, quick: bool) -> Case:
    import ranking

    from dolg_tf.evaluation.revisited.score import score_descriptors

    # The whole index must fit in memory, or the disk would be timed.
    text = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8")
    memory = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    room = min(memory, shutil.disk_usage(folder).free) // 2
    rows = 1_000 if quick else min(1_006_322, room // (4 * WIDTH))
    index = ranking.write_rows(folder / "index.npy", rows, WIDTH)
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((70, WIDTH), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    task = ranking.made_up_task(len(queries), rows, 350)
    return Case(
        f"revisited scores of {len(queries)} queries in {rows:,} x {WIDTH}, 350 photos count",
        {"": lambda: score_descriptors(task, queries, index)},
        [(lambda: ranking.product(index, queries), 1)],
    )


# --- commands ---------------------------------------------------------------------------------


def prepare_quickstart(folder: pathlib.Path, quick: bool) -> Case:
    from PIL import Image

    from dolg_tf.data.procedural.write import ToyConfig, write_toy
    from dolg_tf.modeling.summary import count_multiply_adds

    landmarks, photos, steps = (4, 4, 2) if quick else (12, 20, 50)
    sizes = {"landmarks": landmarks, "photos_per_landmark": photos}
    options = {**sizes, "max_steps": steps, "output": folder / "run"}
    words = [f"--{name}={value}" for name, value in options.items()]
    toy = ToyConfig(output=str(folder / "toy"), unseen_landmarks=landmarks // 2, **sizes)
    write_toy(toy)
    pixels = 0
    for file in (folder / "toy" / "index").rglob("*.jpg"):
        with Image.open(file) as photo:
            pixels += photo.width * photo.height
    network = _small_model(folder)[0]
    macs = {side: sum(count_multiply_adds(network, side)[0].values()) for side in (96, 160)}
    training = 3 * macs[96] * 16 * steps
    described = macs[160] / 160**2 * pixels * sum(scale**2 for scale in SCALES)
    return Case(
        f"{landmarks} landmarks, {steps} steps",
        {"": lambda: run_python("-m", "dolg_tf", "quickstart", *words)},
        arithmetic(training + 2 * described),
        rounds=1,
    )


def prepare_startup(folder: pathlib.Path, quick: bool) -> Case:
    commands = list_commands()[:2] if quick else list_commands()
    calls = {
        " ".join(words): lambda words=words: run_python(*words, "--help") for words in commands
    }
    floor = [(lambda: run_python("-c", "from absl import flags"), 1)]
    return Case(f"`--help` of {len(calls)} commands", calls, floor)


def prepare_import(folder: pathlib.Path, quick: bool) -> Case:
    return Case(
        "`import dolg_tf` in a new process",
        {"": lambda: run_python("-c", "import dolg_tf")},
        [(lambda: run_python("-c", "pass"), 1)],
    )


_RATE = "at the rate of a 4096-cubed matrix product or a 3x3 convolution, whichever is faster"
STAGES = {
    "records": Stage(
        "records",
        "reading the photos, decoding them at an eighth of the size, their CRC-32C by `crc32c`, a "
        "plain write",
        prepare_records,
    ),
    "input": Stage(
        "input pipeline",
        "decoding the same windows of the same photos, by TensorFlow's own call",
        prepare_input,
    ),
    "training": Stage(
        "training step",
        f"three times the multiply-adds of the network's forward pass {_RATE}",
        prepare_training,
    ),
    "validation": Stage(
        "validation step", f"the multiply-adds of the forward pass {_RATE}", prepare_validation
    ),
    "export": Stage(
        "export",
        "reading the weights, writing as many bytes, and loading the result once in TensorFlow's "
        "C++ loader; tracing the network is not in it",
        prepare_export,
    ),
    "extraction": Stage(
        "extraction",
        "the SavedModel's calls on the same batches, decoded before; nothing is written",
        prepare_extraction,
    ),
    "index": Stage(
        "index build",
        "reading the descriptors, writing as many bytes, and their SHA-256",
        prepare_index,
    ),
    "search": Stage("search", "the matrix product alone, nothing kept", prepare_search),
    "evaluation": Stage("evaluation", "the matrix product alone, nothing kept", prepare_evaluation),
    "quickstart": Stage(
        "quickstart, shortened",
        f"the multiply-adds of its training steps and of the descriptors of its index, {_RATE}; "
        "drawing, start-up, tracing and exports are not in it. Timed once",
        prepare_quickstart,
    ),
    "startup": Stage("start-up", '`python -c "from absl import flags"`', prepare_startup),
    "import": Stage("import", '`python -c "pass"`', prepare_import),
}
