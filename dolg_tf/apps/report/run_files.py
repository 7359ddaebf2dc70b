"""The files that a report is made from, those of a run or named by flags, and their reading."""

import dataclasses
import pathlib

import numpy as np

from dolg_tf.apps.report.quickstart_layout import PLACES, SPLITS, VARIANTS, QuickstartLayout
from dolg_tf.evaluation.revisited import score
from dolg_tf.evaluation.revisited.inputs import Inputs, read_inputs
from dolg_tf.retrieval.ground_truth import GroundTruth, load_ground_truth
from dolg_tf.retrieval.index import directory
from dolg_tf.runtime import export_files
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is shown, and where the page goes."""

    run: str = option(
        "folder of the quickstart, or run directory of a training; empty: flags name all files", ""
    )
    output: str = option("folder to write: report.html and its pictures as PNG")
    ground_truth: str = option("gnd_*.pkl or gnd_*.mat; empty: those of the quickstart", "")
    image_root: str = option("folder of its photos; empty: the one named in the descriptor set", "")
    query_descriptors: str = option("descriptor set or .npy of its queries", "")
    index_descriptors: str = option("descriptor set or .npy of its index", "")
    distractor_descriptors: str = option(
        "descriptor set or .npy of photos that match no query; empty: no curve of distractors", ""
    )
    query_local: str = option(
        "local feature set of the queries, whose verified matches are drawn; empty: the "
        "--saved_model finds them",
        "",
    )
    index_local: str = option("local feature set of the index, likewise", "")
    scores: str = option("report.json of its evaluation; empty: computed where possible", "")
    saved_model: str = option("SavedModel whose maps are drawn over photos", "")
    index: str = option("index whose calibrated threshold is drawn; empty: none", "")

    def __post_init__(self):
        if bool(self.query_local) != bool(self.index_local):
            raise InputError("--query_local and --index_local belong together; give both")


DESCRIPTORS = ("ground_truth", "query_descriptors", "index_descriptors")
"""The files that an evaluation of descriptors takes."""
_DIVIDE = (
    "extract them again, or give --scores of `dolg evaluate revisited --normalize`, and the report "
    "divides them as that did"
)


@dataclasses.dataclass(frozen=True)
class TaskFiles:
    """The files of one evaluation; "" stands for a missing one.

    Attributes:
      name: of the task.
      ground_truth, query_descriptors, index_descriptors, distractor_descriptors: see
        `ReportConfig`.
      own: name of the descriptors in `scores`.
      scores: {name of what was scored: its report.json}.
    """

    name: str
    own: str
    ground_truth: str = ""
    query_descriptors: str = ""
    index_descriptors: str = ""
    distractor_descriptors: str = ""
    scores: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files that a report is made from; "" stands for a missing one.

    Attributes:
      run: the folder that was given.
      metrics, config: metrics.jsonl and config.json of the training.
      tasks: the evaluations.
      image_root, saved_model, index, query_local, index_local: see `ReportConfig`.
    """

    run: str
    metrics: str
    config: str
    tasks: tuple[TaskFiles, ...]
    image_root: str
    saved_model: str
    index: str
    query_local: str = ""
    index_local: str = ""

    def lacking(self, **found: str) -> str:
        """Returns which of the named files are missing and which flags name them; "": none."""
        names = [name for name, path in found.items() if not path]
        if not names:
            return ""
        missing = ", ".join(
            f"{self.run}/{PLACES[name]} is missing"
            if self.run and name in PLACES
            else f"no {name.replace('_', ' ')}"
            for name in names
        )
        flags = " and ".join(f"--{name}" for name in names)
        return f"{missing}; give {flags}."


# --- finding -------------------------------------------------------------------------


def find_files(settings: ReportConfig) -> RunFiles:
    """Finds the files of a run; those named by flags take precedence.

    Raises:
      InputError: when a flag names a missing file.
    """
    for field in dataclasses.fields(settings):
        path = getattr(settings, field.name)
        if path and field.name != "output" and not pathlib.Path(path).exists():
            what = "folder" if field.name == "run" else "file or folder"
            raise InputError(f"--{field.name}={path}: no such {what}")
    run = pathlib.Path(settings.run) if settings.run else None

    def there(*names: str) -> str:
        paths = [run / name for name in names] if run else []
        return next((str(path) for path in paths if path.exists()), "")

    saved_model = settings.saved_model or there(PLACES["saved_model"])
    return RunFiles(
        str(run or ""),
        there("train/metrics.jsonl", "metrics.jsonl"),
        there("train/config.json", "config.json"),
        _tasks(settings, run),
        settings.image_root or there("photos"),
        saved_model,
        settings.index,
        settings.query_local,
        settings.index_local,
    )


def _tasks(settings: ReportConfig, run: pathlib.Path | None) -> tuple[TaskFiles, ...]:
    described = _descriptor_sets(run) if run else None
    index = settings.index_descriptors or _existing(described, "index")
    if settings.ground_truth or settings.query_descriptors or settings.scores:
        name = pathlib.Path(settings.ground_truth or settings.scores or "queries").stem
        scores = {name: settings.scores} if settings.scores else {}
        sets = (settings.query_descriptors, index, settings.distractor_descriptors)
        return (TaskFiles(name, name, settings.ground_truth, *sets, scores),)
    found = []
    for split in SPLITS if run else ():
        layout = QuickstartLayout(run)
        truth = layout.ground_truth(split)
        truth = str(truth) if truth.is_file() else ""
        scores = {
            VARIANTS[variant][0]: str(path)
            for variant in VARIANTS
            if (path := layout.scores(variant, split)).is_file()
        }
        queries = _existing(described, split)
        if truth or scores or queries:
            sets = (queries, index, settings.distractor_descriptors)
            own = VARIANTS["trained"][0]
            found.append(TaskFiles(f"{split} landmarks", own, truth, *sets, scores))
    return tuple(found)


def _existing(folder: pathlib.Path | None, name: str) -> str:
    return str(folder / name) if folder and (folder / name).exists() else ""


def _descriptor_sets(run: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the sets that the quickstart's SavedModel described."""
    layout = QuickstartLayout(run)
    about = export_files.read_about(layout.saved_model("trained"))
    if about is not None:
        return layout.descriptors("trained", str(about.get("weights_sha256", "")))
    several = sorted(layout.descriptors("trained").glob("*/"))
    return several[0] if len(several) == 1 else None


# --- reading -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation, read from its files.

    Attributes:
      files: the files.
      scores: {name of what was scored: what its report.json holds}.
      truth, inputs: of the descriptors, see `read_inputs`; None: a file is missing.
      places, plain_scores: of search without re-ranking and distractors, see
        `score.label_places` and `score.score_places`.
      image_root: folder of the photos; "": unknown or missing.
    """

    files: TaskFiles
    scores: dict[str, dict]
    truth: GroundTruth | None = None
    inputs: Inputs | None = None
    places: list[dict[str, np.ndarray]] | None = None
    plain_scores: dict | None = None
    image_root: str = ""

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def own_scores(self) -> dict | None:
        """The scores of the descriptors."""
        return self.scores.get(self.files.own)

    def lacking(self, run: RunFiles, takes: str) -> str:
        """Returns which files are missing and which flags name them; "": none.

        Args:
          run: the run of the evaluation.
          takes: "scores", "descriptors", "photos" (and descriptors), "model" (and photos) or
            "local" (and photos): the model, or local feature sets.
        """
        if takes == "scores":
            return "" if self.own_scores else run.lacking(scores="")
        reason = run.lacking(**{name: getattr(self.files, name) for name in DESCRIPTORS})
        if takes in ("photos", "model", "local"):
            reason = reason or run.lacking(image_root=self.image_root)
        if takes == "model" or (takes == "local" and not run.query_local):
            reason = reason or run.lacking(saved_model=run.saved_model)
        return reason


def read_evaluation(run: RunFiles, task: TaskFiles) -> Evaluation:
    """Reads an evaluation, and computes scores that are missing.

    Raises:
      InputError: when a file is damaged, or files do not belong together.
    """
    scores = {name: _read_scores(path) for name, path in task.scores.items()}
    if not all(getattr(task, name) for name in DESCRIPTORS):
        return Evaluation(task, scores)
    truth = load_ground_truth(task.ground_truth)
    distractors = task.distractor_descriptors or None
    sets = (task.query_descriptors, task.index_descriptors, distractors)
    protocol = scores.get(task.own, {}).get("protocol", {})
    inputs = read_inputs(
        truth,
        task.ground_truth,
        *sets,
        normalize=protocol.get("normalize") is True,
        remedy=_DIVIDE,
    )
    places = list(score.label_places(truth, inputs.queries, inputs.index))
    plain_scores = score.score_places(places).report()
    if task.own in scores:
        _check_same(task.scores[task.own], scores[task.own], inputs, len(truth.query_ids))
    else:
        protocol = {**inputs.protocol, "distractors": 0, "rerank": {"method": "none"}}
        scores = {task.own: plain_scores | {"protocol": protocol}, **scores}
    root = run.image_root or inputs.image_root
    if not pathlib.Path(root).is_dir():
        root = ""
    return Evaluation(task, scores, truth, inputs, places, plain_scores, root)


def _read_scores(path: str) -> dict:
    """Reads the report.json of an evaluation.

    Raises:
      InputError: when it is something else.
    """
    report = files.read_json(path)
    wrong = not isinstance(report, dict) or not isinstance(report.get("protocol"), dict)
    for level in () if wrong else score.LEVELS:
        found = report.get(level)
        wrong = wrong or not isinstance(found, dict) or not isinstance(found.get("AP"), list)
        wrong = wrong or not {"mAP", "mAP_interval", "mP@1", "mP@10"} <= set(found)
    if wrong:
        raise InputError(
            f"{path} is not the report.json of an evaluation; `dolg evaluate revisited` writes one"
        )
    return report


def _check_same(path: str, report: dict, inputs: Inputs, queries: int) -> None:
    """Makes sure that scores belong to the descriptors.

    Raises:
      InputError: when they have another model, or another number of queries.
    """
    told, own = report["protocol"].get("model_hash"), inputs.protocol["model_hash"]
    count = len(report["medium"]["AP"])
    if (told and own and told != own) or count != queries:
        other = "comes from another model than the descriptors"
        if count != queries:
            other = f"has {count} queries, not {queries} as the descriptors"
        raise InputError(f"{path} {other}; run dolg evaluate revisited again")


def read_threshold(run: RunFiles, evaluation: Evaluation) -> float | None:
    """Returns the calibrated threshold of `--index`; None: there is no index.

    Raises:
      InputError: when the index is for another model, was not calibrated, or asks for inliers too.
    """
    if not run.index:
        return None
    meta = directory.read_meta(pathlib.Path(run.index))
    own = evaluation.inputs.protocol["model_hash"]
    if own and meta["model_hash"] != own:
        raise InputError(f"--index={run.index} is for another model than the descriptors")
    if meta["calibration"] is None:
        raise InputError(f"--index={run.index} is not calibrated; `dolg calibrate` does that")
    if fewest := meta["calibration"].get("geometric", {}).get("min_inliers"):
        raise InputError(
            f"--index={run.index} was calibrated with --min_inliers={fewest}: its threshold is for "
            "verified photos alone, and cannot be drawn among all similarities; leave it out, or "
            "calibrate without"
        )
    return meta["calibration"]["threshold"]
