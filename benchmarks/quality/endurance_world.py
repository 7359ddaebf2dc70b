"""Small sound inputs of every kind, drawn and made by the project's own commands."""

import dataclasses
import io
import pathlib
import shutil
import tarfile
from collections.abc import Callable

import endurance_local
import numpy as np
from endurance_photos import PHOTO_KINDS, draw_photo, encode_photo

ROOT = pathlib.Path(__file__).parents[2]
LANDMARKS = 4
SIZE = 16  # of a descriptor


class World:
    """A folder of sound inputs; each is made when it is first asked for.

    Args:
      folder: where they lie.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __getitem__(self, name: str) -> pathlib.Path:
        """Returns the path of an input: one of `MAKERS`, or of `PHOTO_KINDS`."""
        path = self.folder / name
        if not path.exists():
            # Nothing half made is taken for sound. Its maker may make others meanwhile.
            making = self.folder / f"making_{name}" / name
            shutil.rmtree(making.parent, ignore_errors=True)
            making.parent.mkdir(parents=True)
            if name in PHOTO_KINDS:
                kind, options = PHOTO_KINDS[name]
                making.write_bytes(encode_photo(draw_photo(1, 7), kind, **options))
            else:
                MAKERS[name](self, making)
            making.rename(path)
            shutil.rmtree(making.parent)
        return path


# --- photos, lists, records -------------------------------------------------------------------

_SPLITS = ("train",) * 6 + ("index",) * 3 + ("query",)


def _photos(world: World, path: pathlib.Path) -> None:
    """A folder of photos with a labels.csv."""
    lines = ["path,landmark,split"]
    for landmark in range(LANDMARKS):
        for number, split in enumerate(_SPLITS):
            name = f"{split}/{landmark}_{number}.jpg"
            (path / split).mkdir(parents=True, exist_ok=True)
            data = encode_photo(draw_photo(landmark, number), "JPEG", quality=90)
            (path / name).write_bytes(data)
            lines.append(f"{name},place {landmark},{split}")
    (path / "labels.csv").write_text("\n".join([*lines, ""]))


def _gldv2(world: World, path: pathlib.Path) -> None:
    """GLDv2's layout, its photos in tars."""
    rows, clean, members = [], [], []
    for landmark in range(LANDMARKS):
        names = [f"{(landmark * 8 + number) * 7919:016x}"[::-1] for number in range(6)]
        rows += [f"{name},http://x/y,{landmark * 70 + 8}" for name in names]
        clean.append(f"{landmark * 70 + 8},{' '.join(names)}")
        members += [(name, draw_photo(landmark, n)) for n, name in enumerate(names)]
    path.mkdir()
    (path / "train.csv").write_text("\n".join(["id,url,landmark_id", *rows, ""]))
    (path / "train_clean.csv").write_text("\n".join(["landmark_id,images", *clean, ""]))
    for number in range(2):
        with tarfile.open(path / f"images_{number:03d}.tar", "w") as tar:
            for name, image in members[number::2]:
                data = encode_photo(image, "JPEG")
                about = tarfile.TarInfo(f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def _records(world: World, path: pathlib.Path) -> None:
    from dolg_tf.data.records.build import RecordsConfig, build_records

    labels = world["photos"] / "labels.csv"
    options = {"num_shards": 2, "validation_fraction": 0.2, "processes": 1}
    build_records(RecordsConfig(labels_csv=str(labels), output_dir=str(path), **options))


def _truth(world: World, path: pathlib.Path) -> None:
    from dolg_tf.data.own_photos import write_ground_truths

    found = write_ground_truths(world["photos"] / "labels.csv", path.parent)
    found["seen"].rename(path)


def _matlab_truth(world: World, path: pathlib.Path) -> None:
    from scipy.io import savemat

    from dolg_tf.retrieval.ground_truth import load_ground_truth

    task = load_ground_truth(world["gnd_seen.pkl"])
    queries = [
        {
            "bbx": np.array(query.box),
            **{name: getattr(query, name) + 1.0 for name in ("easy", "hard", "junk")},
        }
        for query in task.queries
    ]
    lists = {"imlist": task.index_ids, "qimlist": task.query_ids}
    columns = {name: np.array(ids, object) for name, ids in lists.items()}
    savemat(path, {**columns, "gnd": queries}, do_compression=path.stem == "packed")


# --- descriptors ------------------------------------------------------------------------------


def _ids(split: str) -> list[str]:
    return [
        f"{split}/{landmark}_{number}"
        for landmark in range(LANDMARKS)
        for number, found in enumerate(_SPLITS)
        if found == split
    ]


def _rows(ids: list[str]) -> np.ndarray:
    """Returns unit rows; those of one landmark are near each other."""
    found = []
    for id_ in ids:
        landmark = int(id_.split("/")[1].split("_")[0])
        centre = np.random.default_rng(landmark).standard_normal(SIZE)
        own = np.random.default_rng(list(id_.encode())).standard_normal(SIZE)
        found.append(centre + 0.3 * own)
    rows = np.array(found)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _meta(world: World) -> dict:
    """Returns how the descriptors were made."""
    return {
        "image_root": str(world["photos"]),
        "model_hash": "0123456789abcdef" * 4,
        "scales": [1.0],
        "crop": False,
        "max_side": 0,
        "whitening": None,
        "bad": [],
    }


def _set_of(*splits: str) -> Callable:
    def make(world: World, path: pathlib.Path) -> None:
        from dolg_tf.retrieval import descriptors

        ids = [id_ for split in splits for id_ in _ids(split)]
        found = descriptors.DescriptorSet(tuple(ids), _rows(ids), _meta(world))
        descriptors.write(path, found, shard_rows=5)

    return make


def _rows_file(world: World, path: pathlib.Path) -> None:
    np.save(path, _rows(_ids("index")))


def _whitening(world: World, path: pathlib.Path) -> None:
    from dolg_tf.retrieval.whitening.stages import FitConfig, fit

    fit(FitConfig(descriptors=str(world["set_train"]), output=str(path), dimensions=8))


def _set_of_many(world: World, path: pathlib.Path) -> None:
    """As many rows as an index of kind ivfpq needs."""
    from dolg_tf.retrieval import descriptors

    found = descriptors.read(world["set_all"])
    ids = [f"{number:03d}/{id_}" for number in range(8) for id_ in found.ids]
    rows = np.asarray(found.descriptors)
    rows = np.concatenate([np.roll(rows, number, axis=1) for number in range(8)])
    descriptors.write(path, descriptors.DescriptorSet(tuple(ids), rows, found.meta))


def _index_of(kind: str) -> Callable:
    def make(world: World, path: pathlib.Path) -> None:
        from dolg_tf.retrieval.index import stages

        options = {} if kind == "flat" else {"kind": kind, "nlist": 2, "m": 2}
        many = world["set_all" if kind == "flat" else "set_many"]
        settings = {"descriptors": str(many), "output": str(path), **options}
        stages.build(stages.BuildConfig(**settings))
        for lock in path.parent.glob(".*.lock"):
            lock.unlink()

    return make


def _delf(world: World, path: pathlib.Path) -> None:
    from dolg_tf.retrieval.datum_io import DatumConfig, convert

    convert(DatumConfig(input=str(world["set_index"]), output=str(path)))


def _kaggle(world: World, path: pathlib.Path) -> None:
    """GLDv2's solutions and predictions, and labelled pairs."""
    queries, index = _ids("query"), _ids("index")
    name = {id_: id_.rpartition("/")[2] for id_ in (*queries, *index)}
    near = {
        query: [name[id_] for id_ in index if name[id_][0] == name[query][0]] for query in queries
    }
    path.mkdir()
    usages = ["Public", "Private", "Private", "Ignored"]
    tables = {
        "retrieval_solution.csv": ["id,images,Usage"]
        + [
            f"{name[q]},{' '.join(near[q]) if usage != 'Ignored' else 'None'},{usage}"
            for q, usage in zip(queries, usages, strict=True)
        ],
        "retrieval.csv": ["id,images", *(f"{name[q]},{' '.join(near[q])}" for q in queries)],
        "recognition_solution.csv": ["id,landmarks,Usage"]
        + [f"{name[q]},{name[q][0]},{usage}" for q, usage in zip(queries, usages, strict=True)],
        "recognition.csv": ["id,landmarks", *(f"{name[q]},{name[q][0]} 0.75" for q in queries)],
        "pairs.csv": ["id_a,id_b,same"]
        + [f"{q},{i},{int(name[q][0] == name[i][0])}" for q in queries for i in index],
        "photos.csv": ["path", *(f"{id_}.jpg" for id_ in queries)],
    }
    for file, lines in tables.items():
        (path / file).write_text("\n".join([*lines, ""]))


def _solution_of(task: str) -> Callable:
    def make(world: World, path: pathlib.Path) -> None:
        path.mkdir()
        for name in (f"{task}_solution.csv", f"{task}.csv"):
            shutil.copyfile(world["kaggle"] / name, path / name)

    return make


def _scores(world: World, path: pathlib.Path) -> None:
    from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate

    sets = {f"{name}_descriptors": str(world[f"set_{name}"]) for name in ("query", "index")}
    truth = str(world["gnd_seen.pkl"])
    evaluate(RevisitedConfig(ground_truth=truth, output=str(path), **sets))


# --- networks ---------------------------------------------------------------------------------


def network_config():
    from dolg_tf.modeling.config import DolgConfig

    return DolgConfig(
        backbone="resnet17_small", dilations=(1,), local_channels=32, descriptor_size=SIZE
    )


def _model(world: World, path: pathlib.Path) -> None:
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.modeling.model_dir import save_dolg

    config = network_config()
    save_dolg(build_dolg(config, seed=1), config, path, {"source": "drawn"})


TRAINING = {  # flags of a run of eight steps
    "num_classes": LANDMARKS,
    "image_size": 32,
    "backbone": "resnet17_small",
    "backbone_weights": "none",
    "dilations": "1",
    "local_channels": 32,
    "descriptor_size": SIZE,
    "batch_size": 4,
    "epochs": 2,
    "initial_lr": 0.02,
    "warmup_epochs": 0,
    "scale": 16,
    "log_every": 1,
    "checkpoint_every": 2,
}


def _run(world: World, path: pathlib.Path) -> None:
    from dolg_tf.data.config import DataConfig
    from dolg_tf.training.config import TrainingConfig
    from dolg_tf.training.loop import train

    records = world["records"]
    data = DataConfig(
        train_file_pattern=str(records / "train-*"),
        validation_file_pattern=str(records / "validation-*"),
        num_classes=LANDMARKS,
        image_size=32,
    )
    names = {field.name for field in dataclasses.fields(TrainingConfig)} - {"backbone_weights"}
    options = {name: value for name, value in TRAINING.items() if name in names}
    options |= {"logdir": str(path), "warmup_epochs": 0.0, "scale": 16.0, "max_steps": 4}
    train(network_config(), data, TrainingConfig(**options))


def _run_files(world: World, path: pathlib.Path) -> None:
    """What a report reads of a run."""
    path.mkdir()
    for name in ("config.json", "flags.txt", "metrics.jsonl"):
        shutil.copyfile(world["run"] / name, path / name)


def _export_of(mode: str) -> Callable:
    def make(world: World, path: pathlib.Path) -> None:
        from dolg_tf.serving.config import ExportConfig
        from dolg_tf.serving.export import export

        of_serving = {"scales": (1.0,), "max_pixels": 250_000} if mode == "serving" else {}
        options = {"model_dir": str(world["model"]), "output": str(path), "mode": mode}
        export(ExportConfig(**options, **of_serving))

    return make


def _page_index(world: World, path: pathlib.Path) -> None:
    """An index of the photos as the export describes them."""
    from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
    from dolg_tf.retrieval.index import stages

    described = path.parent / "described"
    options = {"images": str(world["photos"] / "index"), "output": str(described)}
    extract(ExtractConfig(saved_model=str(world["saved_model"]), **options))
    stages.build(stages.BuildConfig(descriptors=str(described), output=str(path)))


def _weights(world: World, path: pathlib.Path) -> None:
    """A state dict in one of the formats, by its suffix."""
    from dolg_tf.weights.files.tensors import write_tensors

    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 4), "count": ()}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    write_tensors(path, arrays | {"steps": np.arange(3)})


def _official(world: World, path: pathlib.Path) -> None:
    """A checkpoint of the authors' network, with weights from nowhere."""
    from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.weights import official
    from dolg_tf.weights.files.tensors import write_tensors

    config = DolgConfig(preprocessing=OFFICIAL_PREPROCESSING)
    write_tensors(path, official.state_dict(build_dolg(config), config))


def _legacy_weights(world: World, path: pathlib.Path) -> None:
    shutil.copyfile(ROOT / "tests/golden/torch_files" / path.name, path)


def _keras_weights(world: World, path: pathlib.Path) -> None:
    shutil.copyfile(world["model"] / "model.weights.h5", path)


MAKERS: dict[str, Callable[[World, pathlib.Path], None]] = {
    "photos": _photos,
    "gldv2": _gldv2,
    "records": _records,
    "gnd_seen.pkl": _truth,
    "gnd_seen.mat": _matlab_truth,
    "packed.mat": _matlab_truth,
    "set_train": _set_of("train"),
    "set_index": _set_of("index"),
    "set_query": _set_of("query"),
    "set_all": _set_of("train", "index"),
    "set_many": _set_of_many,
    "rows.npy": _rows_file,
    "whitening.npz": _whitening,
    "index": _index_of("flat"),
    "index_ivfpq": _index_of("ivfpq"),
    "delf": _delf,
    "local": endurance_local.set_of(_ids("index"), _meta),
    "local_query": endurance_local.set_of(_ids("query"), _meta),
    "codebook.npz": endurance_local.codebook,
    "asmk": endurance_local.asmk_index,
    "pca": endurance_local.pca,
    "kaggle": _kaggle,
    **{f"kaggle_{task}": _solution_of(task) for task in ("retrieval", "recognition")},
    "scores.json": _scores,
    "model": _model,
    "run": _run,
    "run_files": _run_files,
    "saved_model": _export_of("serving"),
    "page_index": _page_index,
    "model.onnx": _export_of("onnx"),
    "model.tflite": _export_of("litert"),
    "official.npz": _official,
    "weights.pth": _weights,
    "tensors.legacy.pth": _legacy_weights,
    "weights.npz": _weights,
    "weights.safetensors": _weights,
    "network.weights.h5": _keras_weights,
}
