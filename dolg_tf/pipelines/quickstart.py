"""The whole chain, as in the README: photos, records, training, export, search, scores.

Every stage leaves its files in the output folder and keeps those already there, so an interrupted
quickstart continues where it stopped.
"""

import dataclasses
import functools
import logging
import pathlib
import shlex
import time
import typing

from dolg_tf.apps.report.quickstart_layout import SPLITS, QuickstartLayout
from dolg_tf.data.config import DataConfig
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.runtime import export_files
from dolg_tf.serving.config import ExportConfig
from dolg_tf.stage import command, installed, progress
from dolg_tf.stage.config import InputError, option
from dolg_tf.training.config import TrainingConfig

if typing.TYPE_CHECKING:  # it imports TensorFlow
    from dolg_tf.modeling.model_dir import LoadedNetwork

log = logging.getLogger(__name__)

SHARDS = 8
SCALES = SCALE_SETS["three"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Settings of the quickstart."""

    output: str = option("folder of all that it writes", "runs/quickstart")
    photos: str = option(
        "folder of your own photos: they are searched, as by `dolg search`; empty: procedural "
        "landmarks",
        "",
    )
    train_flagfile: str = option("recipe of the training: a name, or a flagfile", "quickstart")
    landmarks: int = option(
        "procedural landmarks to train on; half of them, and half as many others, are searched", 60
    )
    photos_per_landmark: int = option("training photos of a procedural landmark", 30)
    batch_size: int = option("photos in a training step; 0: as in the recipe", 0, unit="photos")
    max_steps: int = option("stop training early; 0: after the last epoch", 0, unit="steps")


@dataclasses.dataclass(frozen=True)
class _Photos:
    """The result of the first stage: a photo folder and a ground truth per split."""

    root: pathlib.Path
    ground_truths: dict[str, pathlib.Path]
    records: dict  # arguments of the records builder


def _announce(stage: str) -> None:
    log.info("\n== %s", stage)


def _show(stage: str, **flags) -> None:
    """Logs the command that does the next step alone."""
    log.info("$ dolg %s", shlex.join([*stage.split(), *_words(flags)]))


def _words(flags: dict) -> list[str]:
    """Returns flags as command-line words."""
    words = []
    for name, value in flags.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name}" if value is True else f"--{name}={text}")
    return words


def _photos(settings: QuickstartConfig, layout: QuickstartLayout) -> _Photos:
    from dolg_tf.data.procedural.write import ToyConfig, write_toy

    root = layout.photos
    toy = ToyConfig(
        output=str(root),
        landmarks=settings.landmarks,
        unseen_landmarks=settings.landmarks // 2,
        photos_per_landmark=settings.photos_per_landmark,
    )
    _announce("photos")
    shown = ("output", "landmarks", "unseen_landmarks", "photos_per_landmark")
    _show("draw", **{name: getattr(toy, name) for name in shown})
    write_toy(toy)
    truths = {split: layout.ground_truth(split) for split in SPLITS}
    lists = {
        "images_dir": str(root / "train"),
        "train_csv": str(root / "train.csv"),
        "train_clean_csv": str(root / "train_clean.csv"),
    }
    return _Photos(root, truths, lists)


def _records(photos: _Photos, layout: QuickstartLayout) -> dict:
    from dolg_tf.data.records.build import RecordsConfig, build_records

    arguments = {
        **photos.records,
        "output_dir": str(layout.records),
        "num_shards": SHARDS,
        "validation_fraction": 0.1,
    }
    _announce("records")
    _show("records", **arguments)
    return build_records(RecordsConfig(**arguments))


def _recipe(
    settings: QuickstartConfig, layout: QuickstartLayout
) -> tuple[dict, tuple[DolgConfig, DataConfig, TrainingConfig]]:
    """Returns the flags of `dolg train`, and what the command makes of them."""
    flags = {
        "flagfile": installed.find_recipe(settings.train_flagfile),
        "train_file_pattern": layout.records / "train-*",
        "validation_file_pattern": layout.records / "validation-*",
        "logdir": layout.training,
        "max_steps": settings.max_steps,
    }
    if settings.batch_size:
        flags["batch_size"] = settings.batch_size
    return flags, command.read_flags(_words(flags), DolgConfig, DataConfig, TrainingConfig)


def _train(flags: dict, recipe: tuple, num_classes: int) -> None:
    """Trains as the command would: Ctrl-C and SIGTERM let it save, and end the quickstart."""
    from dolg_tf.pipelines.train import train

    _announce("training")
    _show("train", **flags, num_classes=num_classes)
    model, data, training = recipe
    train(model, dataclasses.replace(data, num_classes=num_classes), training)


def _trained(layout: QuickstartLayout) -> pathlib.Path:
    """Exports the trained network, unless that is done."""
    from dolg_tf.modeling.model_dir import load_network
    from dolg_tf.serving.export import export

    path, config = _export_config("trained", layout.training, layout)
    if not (path.exists() and _is_exported(path, load_network(layout.training))):
        export(config)
    return path


def _untrained(layout: QuickstartLayout) -> pathlib.Path:
    """Writes and exports the network as it was before its first step, unless that is done."""
    from dolg_tf.modeling.model_dir import save_dolg
    from dolg_tf.serving.export import export_twin
    from dolg_tf.training.start import initial_network

    path, config = _export_config("untrained", layout.untrained, layout)
    initial = initial_network(layout.training)
    if not _is_exported(path, initial):
        save_dolg(initial.network, initial.config, layout.untrained, initial.provenance)
        export_twin(config)
    return path


def _export_config(
    variant: str, model_dir: pathlib.Path, layout: QuickstartLayout
) -> tuple[pathlib.Path, ExportConfig]:
    path = layout.saved_model(variant)
    arguments = {
        "model_dir": str(model_dir),
        "output": str(path),
        "scales": SCALES,
        "overwrite": True,
    }
    _announce(f"export: {variant}")
    _show("export", **arguments)
    return path, ExportConfig(**arguments)


def _is_exported(path: pathlib.Path, loaded: "LoadedNetwork") -> bool:
    """Tells whether the export at `path` is of this network."""
    from dolg_tf.modeling.model_dir import weights_hash

    try:
        about = export_files.read_about(path) or {}
    except InputError:  # damaged, so it is written anew
        return False
    weights = weights_hash(loaded.network, loaded.config)
    same = (about.get("weights_sha256"), about.get("scales")) == (weights, list(SCALES))
    if same:
        log.info("%s: kept, it is up to date", path)
    return same


def _describe(
    variant: str, model: pathlib.Path | None, photos: _Photos, layout: QuickstartLayout
) -> dict[str, pathlib.Path]:
    """Extracts the index once, and the queries of each ground truth; returns their folders."""
    from dolg_tf.retrieval.extract.colour_histogram import DESCRIBER
    from dolg_tf.retrieval.extract.model import open_describer
    from dolg_tf.retrieval.extract.photos import PhotosConfig
    from dolg_tf.retrieval.extract.stage import describe_photos

    _announce(f"descriptors: {variant}")
    if model is None:
        shown, made_by, describer = "colour-histogram", {}, DESCRIBER
        folder = layout.descriptors(variant)
    else:
        shown, made_by = "extract", {"saved_model": str(model)}
        describer = open_describer(model, ())
        # A network that was trained further describes anew; the sets of others stay.
        folder = layout.descriptors(variant, describer.model_hash)
    # Loaded for the first set that is not there yet, and once.
    describer = dataclasses.replace(describer, load=functools.cache(describer.load))
    subsets = {"index": next(iter(photos.ground_truths.values())), **photos.ground_truths}
    for name, ground_truth in subsets.items():
        arguments = {
            "images": str(ground_truth),
            "image_root": str(photos.root),
            "subset": "index" if name == "index" else "query",
            "output": str(folder / name),
        }
        _show(shown, **arguments, **made_by)
        describe_photos(PhotosConfig(**arguments), describer)
    return {name: folder / name for name in subsets}


def _score(variant: str, sets: dict, photos: _Photos, layout: QuickstartLayout) -> dict:
    from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate

    _announce(f"scores: {variant}")
    scores = {}
    for split, ground_truth in photos.ground_truths.items():
        arguments = {
            "ground_truth": str(ground_truth),
            "query_descriptors": str(sets[split]),
            "index_descriptors": str(sets["index"]),
            "output": str(layout.scores(variant, split)),
        }
        _show("evaluate revisited", **arguments)
        scores[split] = evaluate(RevisitedConfig(**arguments))
    return scores


def _pictures(sets: dict, photos: _Photos) -> list:
    from dolg_tf.apps.pictures.ranked_list import ranked_list
    from dolg_tf.apps.pictures.rankings import rows_of_evaluation
    from dolg_tf.apps.report.page import Picture

    pictures = []
    for split, ground_truth in photos.ground_truths.items():
        rows = rows_of_evaluation(ground_truth, photos.root, sets[split], sets["index"])
        pictures.append(
            Picture(
                f"ranked_{split}",
                ranked_list(rows),
                f"Queries of {split} landmarks and the ten photos that the trained network "
                "ranks first",
                f"{split.capitalize()} landmarks: queries from the best to the worst average "
                "precision, in even steps.",
            )
        )
    return pictures


def quickstart(settings: QuickstartConfig) -> pathlib.Path | None:
    """Runs the whole chain, from photos to a scored report; run it again to continue.

    With --photos it is `dolg search PHOTOS`: your own photos are searched, without training.

    Returns:
      The path of report.md; None: photos were searched.

    Raises:
      InputError: when matplotlib or the recipe is missing; with --photos as `search`.
    """
    if settings.photos:
        from dolg_tf.pipelines.own_photos.command import search
        from dolg_tf.pipelines.own_photos.config import SearchConfig

        output = "" if settings.output == QuickstartConfig.output else settings.output
        search(SearchConfig(photos=(settings.photos,), output=output))
        return None
    layout = QuickstartLayout(pathlib.Path(settings.output))
    # Minutes before they are used.
    training = _recipe(settings, layout)
    installed.need("report", "the pictures of the report", "matplotlib")
    start, times = time.monotonic(), {}

    def timed(name, function, *arguments):
        begin = time.monotonic()
        result = function(*arguments)
        times[name] = times.get(name, 0.0) + time.monotonic() - begin
        return result

    photos = timed("photos", _photos, settings, layout)
    records = timed("records", _records, photos, layout)
    timed("training", _train, *training, records["num_classes"])
    models = {
        "trained": timed("export", _trained, layout),
        "untrained": timed("export", _untrained, layout),
        "colour_histogram": None,
    }
    scores, sets = {}, {}
    for variant, model in models.items():
        sets[variant] = timed("descriptors", _describe, variant, model, photos, layout)
        scores[variant] = timed("search and scores", _score, variant, sets[variant], photos, layout)

    from dolg_tf.pipelines.quickstart_report import write_quickstart_report

    pictures = timed("pictures", _pictures, sets["trained"], photos)
    facts = {"training photos": records["train"], "landmarks": records["num_classes"]}
    facts |= {f"time of {name}": progress.format_seconds(spent) for name, spent in times.items()}
    facts["time in all"] = progress.format_seconds(time.monotonic() - start)
    page = write_quickstart_report(layout.root, scores, facts, pictures)
    log.info("\nDone in %s: see %s", facts["time in all"], page)
    return page
