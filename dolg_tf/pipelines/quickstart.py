"""The whole chain, as in the README: photos, records, training, export, search, scores.

Every stage leaves its files in the output folder and keeps those already there, so an interrupted
quickstart continues where it stopped.
"""

import dataclasses
import logging
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from dolg_tf.apps.report.quickstart_layout import SPLITS, QuickstartLayout
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.runtime import export_files
from dolg_tf.stage import installed, progress, signals
from dolg_tf.stage.config import option

log = logging.getLogger(__name__)

SHARDS = 8


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


def _show(command: str, **flags) -> None:
    """Logs the command that does the next step alone."""
    log.info("$ dolg %s", shlex.join([*command.split(), *_words(flags)]))


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


def _train(settings: QuickstartConfig, num_classes: int, layout: QuickstartLayout) -> None:
    """Runs the real entry as a user would; Ctrl-C and SIGTERM let it save, and it ends with us."""
    flags = {
        "flagfile": installed.find_recipe(settings.train_flagfile),
        "train_file_pattern": layout.records / "train-*",
        "validation_file_pattern": layout.records / "validation-*",
        "num_classes": num_classes,
        "logdir": layout.training,
        "max_steps": settings.max_steps,
    }
    if settings.batch_size:
        flags["batch_size"] = settings.batch_size
    _announce("training")
    _show("train", **flags)
    child = subprocess.Popen(
        [sys.executable, "-m", "dolg_tf", "train", *_words(flags)],
        env={**os.environ, signals.PARENT: str(os.getpid())},
    )
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal interrupted it too: it is saving
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        # The child has said why.
        raise SystemExit(code if code > 0 else 128 - code)


def _untrained(layout: QuickstartLayout) -> None:
    """Writes the network as it was before its first training step."""
    from dolg_tf.modeling.model_dir import save_dolg
    from dolg_tf.training.start import initial_network

    network, model, provenance = initial_network(layout.training)
    save_dolg(network, model, layout.untrained, provenance)


def _export(variant: str, model_dir: pathlib.Path, layout: QuickstartLayout) -> pathlib.Path:
    from dolg_tf.serving.config import ExportConfig
    from dolg_tf.serving.export import export

    path = layout.saved_model(variant)
    arguments = {
        "model_dir": str(model_dir),
        "output": str(path),
        "scales": SCALE_SETS["three"],
        "overwrite": True,
    }
    _announce(f"export: {variant}")
    _show("export", **arguments)
    return export(ExportConfig(**arguments))


def _describe(
    variant: str, model: pathlib.Path | None, photos: _Photos, layout: QuickstartLayout
) -> dict[str, pathlib.Path]:
    """Extracts the index once, and the queries of each ground truth; returns their folders."""
    from dolg_tf.retrieval.extract.colour_histogram import (
        ColourHistogramConfig,
        extract_colour_histograms,
    )
    from dolg_tf.retrieval.extract.stage import ExtractConfig, extract

    _announce(f"descriptors: {variant}")
    sets, weights = {}, ""
    if model is not None:
        # A network that was trained further describes anew; the sets of others stay.
        weights = (export_files.read_about(model) or {}).get("weights_sha256", "")
    folder = layout.descriptors(variant, weights)
    subsets = [("index", next(iter(photos.ground_truths.values())))]
    subsets += [(split, path) for split, path in photos.ground_truths.items()]
    for name, ground_truth in subsets:
        path = folder / name
        arguments = {
            "images": str(ground_truth),
            "image_root": str(photos.root),
            "subset": "index" if name == "index" else "query",
            "output": str(path),
        }
        if model is None:
            _show("colour-histogram", **arguments)
            extract_colour_histograms(ColourHistogramConfig(**arguments))
        else:
            arguments["saved_model"] = str(model)
            _show("extract", **arguments)
            extract(ExtractConfig(**arguments))
        sets[name] = path
    return sets


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

        search(SearchConfig(photos=(settings.photos,)))
        return None
    # Minutes before they are used.
    installed.find_recipe(settings.train_flagfile)
    installed.need("report", "the pictures of the report", "matplotlib")
    layout = QuickstartLayout(pathlib.Path(settings.output))
    start, times = time.monotonic(), {}

    def timed(name, function, *arguments):
        begin = time.monotonic()
        result = function(*arguments)
        times[name] = times.get(name, 0.0) + time.monotonic() - begin
        return result

    photos = timed("photos", _photos, settings, layout)
    records = timed("records", _records, photos, layout)
    timed("training", _train, settings, records["num_classes"], layout)
    timed("export", _untrained, layout)
    models = {
        "trained": timed("export", _export, "trained", layout.training, layout),
        "untrained": timed("export", _export, "untrained", layout.untrained, layout),
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
