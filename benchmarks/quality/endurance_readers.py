"""Everything of ours that reads files, for `endurance.py`: what is read, how, and what it gives."""

import contextlib
import dataclasses
import functools
import glob
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from endurance_mutations import Disagreement
from endurance_photos import IN_GRAPHS, PHOTO_KINDS
from endurance_world import LANDMARKS, SIZE, World

_MAX_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
      make: returns the path of a sound input in a world.
      read: reads an input and returns what it found, for `endurance_mutations.digest`.
      sound: whether it promises to notice any damage, by checksums.
      share: of all mutations, relative to other readers; slow ones have a small one.
      tensorflow: whether it needs TensorFlow.
    """

    make: Callable[[World], pathlib.Path]
    read: Callable[[pathlib.Path], object]
    sound: bool = False
    share: int = 10
    tensorflow: bool = False


def _of(name: str, file: str = "") -> Callable[[World], pathlib.Path]:
    """Returns a function from a world to one of its inputs, or to a file in it."""
    return functools.partial(_find, name, file)


def _find(name: str, file: str, world: World) -> pathlib.Path:
    return world[name] / file if file else world[name]


# --- photos, lists, records -------------------------------------------------------------------


def _read_photo(path: pathlib.Path):
    from dolg_tf.data import photo_files
    from dolg_tf.stage.config import InputError

    try:
        data = photo_files.read_file(path)
        return photo_files.decode(data, upright=True, max_pixels=_MAX_PIXELS)
    except photo_files.UnusablePhoto as error:  # its caller names the photo
        raise InputError(f"{path}: {error}") from error


def _photo_for_records(path: pathlib.Path):
    from dolg_tf.data.records import shards
    from dolg_tf.stage.config import InputError

    try:
        data = shards.read_photo(shards.Photo("id", str(path), 0))
        return tuple(shards.encode_photo(data, shards.Rule(upright=True, max_pixels=_MAX_PIXELS)))
    except shards.UnusablePhoto as error:
        raise InputError(f"{path}: {error}") from error


def _photo_in_graph(path: pathlib.Path):
    """Decodes in a graph, and compares with the rule outside graphs."""
    from dolg_tf.data import photo_files
    from dolg_tf.stage.config import InputError

    try:
        data = photo_files.read_file(path)
    except photo_files.UnusablePhoto as error:
        raise InputError(f"{path}: {error}") from error
    found, status = (x.numpy() for x in _loading_graph()(data))
    if status:
        raise InputError(f"{path}: status {status}")
    with contextlib.suppress(photo_files.UnusablePhoto):
        outside = photo_files.decode(data, upright=False, max_pixels=_MAX_PIXELS)
        if found.shape != outside.shape or (found != outside).any():
            raise Disagreement(f"{path}: other pixels in a graph than outside")
    return found


@functools.cache
def _loading_graph():
    import tensorflow as tf

    from dolg_tf.serving.graph import requests

    spec = [tf.TensorSpec([], tf.string)]
    return tf.function(lambda data: requests.load(data, _MAX_PIXELS), input_signature=spec)


def _read_described_photo(path: pathlib.Path):
    from dolg_tf.retrieval.extract.decoding import read_photo

    return read_photo(path)


def _read_labels(path: pathlib.Path):
    from dolg_tf.data.own_photos import read_labels

    return read_labels(path)


def _read_lists(key: str, path: pathlib.Path):
    from dolg_tf.data.records.label_lists import ListsConfig, read_photos

    images = {} if key == "labels_csv" else {"images_dir": str(path.parent)}
    table, landmarks = read_photos(ListsConfig(**{key: str(path)}, **images))
    return [(table[i].id, table[i].label) for i in range(len(table))], landmarks


def _listed_photos(path: pathlib.Path):
    from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos

    listing = list_photos(PhotosConfig(images=str(path), output="set"))
    return [photo.id for photo in listing.photos]


def _records_pattern(path: pathlib.Path) -> str:
    return str(pathlib.Path(glob.escape(str(path)), "train-*"))


def _verify_records(path: pathlib.Path):
    from dolg_tf.data.records.verify import VerifyConfig, verify_records
    from dolg_tf.stage.config import InputError

    try:
        return verify_records(VerifyConfig(file_pattern=_records_pattern(path), processes=1))
    except InputError as error:  # the log names files and records
        raise InputError(f"{path}: {error}") from error


def _extract_records(path: pathlib.Path):
    from dolg_tf.retrieval.extract.photo_records import list_records, read_record
    from dolg_tf.stage.config import InputError

    found = []
    for record in list_records(_records_pattern(path)):
        try:
            found.append((record.id, record.upright, read_record(record.file, record.start)))
        except ValueError as error:  # one bad photo, which the stage names
            raise InputError(f"{record.file}: {error}") from error
    return found


def _train_on_records(path: pathlib.Path):
    from dolg_tf.data import config
    from dolg_tf.data.input.pipeline import TrainingInput
    from dolg_tf.data.records import classes

    counts = classes.read_class_counts(_records_pattern(path), LANDMARKS)
    data = config.DataConfig(
        train_file_pattern=_records_pattern(path), num_classes=LANDMARKS, image_size=32
    )
    photos = TrainingInput(data, 4, 0)
    found, batches = [], iter(photos.dataset(0, photos.steps_per_epoch))
    try:
        for batch in batches:
            found.append([array.numpy() for array in batch])
    except Exception as error:
        raise photos.describe(error, len(found)) from error
    return counts, found


def _read_tars(path: pathlib.Path):
    from dolg_tf.data.records import tars
    from dolg_tf.data.records.label_lists import ListsConfig, read_photos
    from dolg_tf.data.records.shards import read_photo

    lists = ListsConfig(images_dir=str(path), train_csv=str(path / "train.csv"))
    table, _ = read_photos(lists)
    notes = path.parent / "notes"
    shutil.rmtree(notes, ignore_errors=True)
    found = tars.locate(table, notes, processes=1)
    return [
        (found[i].id, found.places.size[i], _bytes(read_photo, found[i])) for i in range(len(found))
    ]


def _bytes(read, photo):
    from dolg_tf.data.records.shards import UnusablePhoto

    try:
        return read(photo)
    except UnusablePhoto as error:
        return str(error)


# --- descriptors ------------------------------------------------------------------------------


def _read_set(path: pathlib.Path):
    from dolg_tf.retrieval import descriptors

    found = descriptors.read(path)
    return found.ids, found.meta, np.asarray(found.descriptors)


def _verify(path: pathlib.Path):
    from dolg_tf.pipelines.verify import VerifyConfig, verify

    return verify(VerifyConfig(path=str(path)))


def _read_whitening(path: pathlib.Path):
    from dolg_tf.runtime.whitening import load_whitening

    return load_whitening(path, SIZE)


def _search_index(path: pathlib.Path):
    from dolg_tf.retrieval.index.directory import Index

    found = Index.open(path)
    queries = np.eye(SIZE, dtype=np.float32)[:5]
    return found.ids, found.threshold, tuple(found.search(queries, 4))


def _read_delf(path: pathlib.Path):
    from dolg_tf.retrieval.datum_io import DatumConfig, convert

    output = path.parent / "attacked_set"  # its rows are named by number
    convert(DatumConfig(input=str(path), output=str(output), overwrite=True))
    return [np.load(file) for file in sorted(output.glob("*.npy"))]


def _read_truth(path: pathlib.Path):
    from dolg_tf.retrieval.ground_truth import load_ground_truth

    return load_ground_truth(path)


def _read_solution(task: str, path: pathlib.Path):
    from dolg_tf.evaluation.gldv2 import kaggle_csv

    solution = kaggle_csv.read_solution(path / f"{task}_solution.csv", task)
    return solution, kaggle_csv.read_predictions(path / f"{task}.csv", task, solution)


def _read_pairs(path: pathlib.Path):
    from dolg_tf.evaluation.labelled_pairs import listed_pairs
    from dolg_tf.retrieval import descriptors

    world = World(path.parents[1] / "world")
    found = [descriptors.read(world[name]) for name in ("set_query", "set_index")]
    return [tuple(block) for block in listed_pairs(path, *found)()]


# --- networks ---------------------------------------------------------------------------------


def _load_network(path: pathlib.Path):
    from dolg_tf.modeling.model_dir import load_network, weights_hash

    network, config, provenance = load_network(path)
    return weights_hash(network, config), provenance


def _load_model(path: pathlib.Path):
    from dolg_tf.retrieval.extract.model import load_model

    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return load_model(path).describe([photo])


def _read_tensors(path: pathlib.Path):
    from dolg_tf.weights.files.tensors import open_tensors

    return {name: np.asarray(t.read()) for name, t in open_tensors(path).tensors.items()}


@functools.cache
def _network():
    from endurance_world import network_config

    from dolg_tf.modeling.dolg import build_dolg

    return build_dolg(network_config())


def _load_keras_weights(path: pathlib.Path):
    from dolg_tf.modeling.files.h5_weights import load_weights

    load_weights(_network(), path)
    return [np.asarray(variable) for variable in _network().variables]


def _read_run(path: pathlib.Path):
    from dolg_tf.apps.report.figures.training_curves import describe_curve, read_metrics, recipe
    from dolg_tf.apps.report.run_files import ReportConfig, find_files
    from dolg_tf.stage.config import InputError

    run = find_files(ReportConfig(run=str(path), output="page"))
    if not (run.metrics and run.config):  # the report says so, and goes on
        raise InputError(f"{path} lacks its metrics.jsonl or config.json")
    metrics = read_metrics(run.metrics)
    words = [describe_curve(name, splits) for name, splits in metrics.items()]
    return words, list(recipe(run.config))


def _read_evaluation(path: pathlib.Path):
    from dolg_tf.apps.report.run_files import ReportConfig, find_files, read_evaluation

    world = World(path.parents[1] / "world")
    files = {"query_descriptors": "set_query", "index_descriptors": "set_index"}
    options = {name: str(world[item]) for name, item in files.items()}
    truth = str(world["gnd_seen.pkl"])
    run = find_files(ReportConfig(output="page", ground_truth=truth, scores=str(path), **options))
    return [read_evaluation(run, task).scores for task in run.tasks]


_CHEAP = {
    **{f"photo, {name}": Reader(_of(name), _read_photo, share=4) for name in PHOTO_KINDS},
    **{
        f"described photo, {name}": Reader(_of(name), _read_described_photo, share=2)
        for name in PHOTO_KINDS
    },
    "photo for records": Reader(_of("turned.jpg"), _photo_for_records, share=4),
    "labels.csv": Reader(_of("photos", "labels.csv"), _read_labels),
    "labels.csv, records": Reader(
        _of("photos", "labels.csv"), functools.partial(_read_lists, "labels_csv")
    ),
    "train.csv": Reader(_of("gldv2", "train.csv"), functools.partial(_read_lists, "train_csv")),
    "train_clean.csv": Reader(
        _of("gldv2", "train_clean.csv"), functools.partial(_read_lists, "train_clean_csv")
    ),
    "CSV of photos": Reader(_of("kaggle", "photos.csv"), _listed_photos),
    "tars": Reader(_of("gldv2"), _read_tars),
    "records, extraction": Reader(_of("records"), _extract_records),
    "records, verify": Reader(_of("records"), _verify_records),
    "descriptor set": Reader(_of("set_index"), _read_set),
    "descriptor set, verify": Reader(_of("set_index"), _verify, sound=True),
    ".npy of descriptors": Reader(_of("rows.npy"), _read_set),
    "whitening": Reader(_of("whitening.npz"), _read_whitening),
    "index": Reader(_of("index"), _search_index),
    "index, verify": Reader(_of("index"), _verify, sound=True),
    "index of kind ivfpq": Reader(_of("index_ivfpq"), _search_index, sound=True),
    "DELF's files": Reader(_of("delf"), _read_delf),
    "ground truth .pkl": Reader(_of("gnd_seen.pkl"), _read_truth),
    "ground truth .mat": Reader(_of("gnd_seen.mat"), _read_truth),
    "ground truth .mat, packed": Reader(_of("packed.mat"), _read_truth),
    **{
        f"solution and predictions, {task}": Reader(
            _of(f"kaggle_{task}"), functools.partial(_read_solution, task)
        )
        for task in ("retrieval", "recognition")
    },
    "labelled pairs": Reader(_of("kaggle", "pairs.csv"), _read_pairs),
    "weights, PyTorch": Reader(_of("weights.pth"), _read_tensors),
    "weights, PyTorch legacy": Reader(_of("tensors.legacy.pth"), _read_tensors),
    "weights, .npz": Reader(_of("weights.npz"), _read_tensors),
    "weights, safetensors": Reader(_of("weights.safetensors"), _read_tensors),
    "scores of a report": Reader(_of("scores.json"), _read_evaluation),
}
_WITH_TENSORFLOW = {
    **{
        f"photo in a graph, {name}": Reader(_of(name), _photo_in_graph, share=3)
        for name, (kind, _) in PHOTO_KINDS.items()
        if kind in IN_GRAPHS
    },
    "records, training": Reader(_of("records"), _train_on_records, share=4),
    "run directory, report": Reader(_of("run_files"), _read_run),
    "weights, .h5": Reader(_of("network.weights.h5"), _load_keras_weights, share=4),
    "model directory": Reader(_of("model"), _load_network, sound=True, share=2),
    "run directory": Reader(_of("run"), _load_network, share=2),
    "SavedModel": Reader(_of("saved_model"), _load_model, share=2),
    "SavedModel, verify": Reader(_of("saved_model"), _verify, sound=True, share=2),
    "ONNX file": Reader(_of("model.onnx"), _verify, share=4),
    "LiteRT file": Reader(_of("model.tflite"), _verify, share=4),
}
# Those that need TensorFlow last: the others run in a process without it.
READERS: dict[str, Reader] = _CHEAP | {
    name: dataclasses.replace(reader, tensorflow=True) for name, reader in _WITH_TENSORFLOW.items()
}
