"""The model card: the network, its training data, its scores, and how to use it.

Markdown with the metadata block of the Hugging Face Hub; nothing is sent anywhere. The card says
what is not known, and holds scores only from a report of them.

Reference: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

import dataclasses
import json
import logging
import pathlib
import typing

from dolg_tf.modeling.config import DolgConfig, NetworkConfig
from dolg_tf.modeling.files.config_file import find_network, read_config
from dolg_tf.serving.config import least_tensorflow
from dolg_tf.stage import config as configs
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

if typing.TYPE_CHECKING:  # it imports TensorFlow
    import keras

log = logging.getLogger(__name__)

NAME = "README.md"
_IMAGE_SIZE = 512  # of the photo for which arithmetic is counted, in pixels
_LEVELS = ("easy", "medium", "hard")
_SCORES = ("mAP", "mP@1", "mP@5", "mP@10")

_LIMITS = """
- It tells landmarks apart: buildings, monuments, scenery. It was not tested on other objects or
  on people.
- Pixels are described as they are given: a photo that lies on its side, on its side.
- Descriptors of two models, or of two exports that differ in whitening, cannot be compared.
- Places that the training photos do not cover are described less well, and training photos cover
  the world unevenly.
"""
_LICENCE = """
The software that made this model is under Apache-2.0. No licence of the weights is recorded:
whoever publishes them must state it, considering the photos and the weights that training started
from (each photo of Google Landmarks v2 has its own licence, its labels are under CC BY 4.0; the
code of DOLG's authors is under MIT).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """The parts of a card that depend on the kind of output alone.

    Args:
      use: Python code that describes photo.jpg; NAME stands for the file or directory, SCALES
        for its default scales.
      after_use: a paragraph after the code.
      after_scores: a sentence below the scores.
      library: what runs the model, in the Hub's words.
      takes: the photos that go in.
    """

    use: str
    after_use: str = ""
    after_scores: str = ""
    library: str = "tensorflow"
    takes: str = "uint8 RGB"


_OF_MODEL_DIR = Words(
    use="""from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.export import export

export(ExportConfig(model_dir="NAME", output="saved_model"))
""",
    library="keras",
    takes="float32 RGB in [0, 1]",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCardConfig(NetworkConfig):
    """Which network's card is written."""

    output: str = configs.option(f"file to write; empty: {NAME} in the directory", "")
    report: str = configs.option(
        "report.json of an evaluation of this network; empty: its scores are not measured", ""
    )
    overwrite: bool = configs.option("replace an existing output", False)


def write_model_card(config: ModelCardConfig) -> pathlib.Path:
    """Writes the model card of a network on disk.

    Returns:
      The file.

    Raises:
      InputError: when the output exists, model or report cannot be read, or they do not match.
    """
    output = pathlib.Path(config.output or pathlib.Path(config.model_dir) / NAME)
    files.check_output(output, config.overwrite)
    report = read_report(config.report)
    find_network(config.model_dir, config.checkpoint, config.weights)

    from dolg_tf.modeling.model_dir import load_network, weights_hash

    network, dolg_config, provenance = load_network(
        config.model_dir, config.checkpoint, config.weights
    )
    about = {
        "preprocessing": configs.to_dict(dolg_config.preprocessing),
        "weights_sha256": weights_hash(network, dolg_config),
        "provenance": provenance,
    }
    name = pathlib.Path(config.model_dir).resolve().name
    card = card_of(name, about, _OF_MODEL_DIR, network, dolg_config, config.model_dir, report)
    files.write_text(output, card)
    log.info("model card of %s: %s", config.model_dir, output)
    return output


def read_report(path: files.Path) -> dict | None:
    """Reads the report.json of an evaluation; None for an empty path.

    Raises:
      InputError: when the file does not exist or is not such a report.
    """
    if not path:
        return None
    report = files.read_json(path)
    try:
        for level in _LEVELS:
            for score in _SCORES:
                value = report[level][score]
                if value is not None and not 0 <= value <= 1:
                    raise ValueError
        dict(report["protocol"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"--report={path} is not a report.json of `dolg evaluate revisited`; give the file "
            "that it wrote"
        ) from error
    return report


def card_of(
    name: str,
    about: dict,
    words: Words,
    network: "keras.Model",
    dolg_config: DolgConfig,
    model_dir: files.Path,
    report: dict | None,
) -> str:
    """Returns the card of a network, see `model_card`, with the recipe if a run trained it.

    Args:
      name: of the exported file or directory.
      about: what the export says about itself: `weights_sha256`, `preprocessing`, `provenance`,
        and where they apply `scales`, `precision`, `quantize`, `whitening`.
      words: of the kind of output.
      network: the Keras network in float32.
      dolg_config: its configuration.
      model_dir: where it was loaded from; empty: it is a ready network.
      report: of `read_report`.
    """
    from dolg_tf.modeling.summary import summarize

    summary = summarize(network, dolg_config, about["provenance"], _IMAGE_SIZE)
    values = read_config(model_dir)[1] if model_dir else {}
    run = values if "training" in values else None
    return model_card(name, about, words, summary, run, report)


def model_card(
    name: str,
    about: dict,
    words: Words,
    summary: dict,
    run: dict | None = None,
    report: dict | None = None,
) -> str:
    """Returns a model card, Markdown with a YAML block.

    Args:
      name: of the exported file or directory.
      about: see `card_of`.
      words: of the kind of output.
      summary: of `dolg_tf.modeling.summary.summarize`.
      run: config.json of the run that trained it; None: it was not trained here.
      report: of `read_report`; None: the scores are not measured.

    Raises:
      InputError: when the report is about other weights.
    """
    from huggingface_hub import ModelCard

    measured = None if report is None else report["protocol"].get("model_hash")
    if measured not in (None, about["weights_sha256"]):
        raise InputError(
            f"--report is about model {measured}, but this model is {about['weights_sha256']}; "
            "give its own report"
        )
    sections = {
        "Network": _network(summary),
        "Training data": _data(about, run),
        "Scores": _scores(words, report),
        "Preprocessing": _preprocessing(about, words),
        "Use": _use(name, about, words),
        "Limits": _LIMITS,
        "Licence": _LICENCE,
        "Origin": _origin(about),
    }
    title = f"# {name}\n\n{_purpose(about, summary)} "
    method = "DOLG, after Yang et al., ICCV 2021, https://arxiv.org/abs/2108.02927,"
    if "local features" not in summary["parts"]:
        method = "Global features alone, without DOLG's local branch,"
    title += f"{method} in TensorFlow (dolg_tf).\n"
    text = "\n".join(f"## {head}\n\n{body.strip()}\n" for head, body in sections.items())
    metadata = _metadata(name, words, report).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{title}\n{text}"))


def _purpose(about: dict, summary: dict) -> str:
    if index := about.get("index"):
        return (
            f"A photo of a landmark in, the {index['k']} nearest of the {index['rows']:,} photos "
            "of an index out: those whose descriptors have the largest inner product with its own."
        )
    return (
        f"A photo of a landmark in, one descriptor of {summary['descriptor_size']} numbers out. "
        "Descriptors of the same place have a large inner product."
    )


def _metadata(name: str, words: Words, report: dict | None):
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for level in _LEVELS if report else ():
        task = report["protocol"].get("ground_truth") or "unnamed ground truth"
        results += [
            EvalResult(
                task_type="image-feature-extraction",
                dataset_type=task,
                dataset_name=f"{task}, {level}",
                dataset_config=level,
                metric_type=score,
                metric_value=report[level][score],
            )
            for score in _SCORES
            if report[level][score] is not None
        ]
    return ModelCardData(
        library_name=words.library,
        license="unknown",
        pipeline_tag="image-feature-extraction",
        tags=["dolg", "image-retrieval", "landmark-retrieval"],
        model_name=name,
        eval_results=results or None,
    )


def _network(summary: dict) -> str:
    lines = [f"- {words}" for words in summary["network"]]
    lines += ["", "| part | parameters | trainable | GMAC |", "| --- | ---: | ---: | ---: |"]
    for part, row in summary["parts"].items():
        giga = row["multiply_adds"] / 1e9
        lines.append(f"| {part} | {row['parameters']:,} | {row['trainable']:,} | {giga:.3f} |")
    size = summary["image_size"]
    lines += ["", f"GMAC: 10^9 multiply-adds for one photo of {size} x {size} pixels, one scale."]
    return "\n".join(lines)


def _data(about: dict, run: dict | None) -> str:
    if run is None:
        source = about["provenance"].get("source", "not recorded")
        return (
            f"Not trained by dolg_tf; the weights come from: {source}. Nothing else is recorded "
            "about the photos."
        )
    data, training = run["data"], run["training"]
    if "tuples" in training:
        return _data_of_tuples(about, data, training)
    landmarks = f"{data['num_classes']:,}" if data["num_classes"] else "all in its relabeling.csv"
    start = training["init_from"] or training["backbone_weights"]
    steps = about["provenance"].get("step")
    return "\n".join(
        [
            f"- records: `{_last_parts(data['train_file_pattern'])}`; landmarks: {landmarks}",
            f"- crops of {data['image_size']} x {data['image_size']} pixels, batches of "
            f"{training['batch_size']}, {steps} steps, seed {training['seed']}",
            f"- loss {training['loss']}, margin {training['margin']}, scale {training['scale']}; "
            f"{training['optimizer']}, learning rate {training['initial_lr']}",
            f"- started from: {_last_parts(start) if start != 'none' else 'random weights'}",
        ]
    )


def _data_of_tuples(about: dict, data: dict, training: dict) -> str:
    """Returns what a run of `dolg train-how` was trained on."""
    steps, start = about["provenance"].get("step"), training["backbone_weights"]
    return "\n".join(
        [
            f"- photos: `{_last_parts(data['photos'])}`, at most {data['image_size']} pixels wide "
            "and high",
            f"- tuples of a query, a positive and {training['negatives']} mined negatives, "
            f"{training['tuples']} a step, {steps} steps, seed {training['seed']}",
            f"- contrastive loss, margin {training['margin']}; Adam, learning rate "
            f"{training['learning_rate']}",
            f"- started from: {_last_parts(start) if start != 'none' else 'random weights'}",
        ]
    )


def _last_parts(path: str) -> str:
    """Returns folder and name; the rest of a path means nothing on another machine."""
    return "/".join(pathlib.PurePath(path).parts[-2:]).lstrip("/")


def _scores(words: Words, report: dict | None) -> str:
    if report is None:
        return "Not measured. `dolg evaluate revisited` measures; `--report` puts its scores here."
    lines = [
        f"| percent | {' | '.join(_SCORES)} | 95 % of mAP |",
        f"| --- |{' ---: |' * len(_SCORES)} --- |",
    ]
    for level in _LEVELS:
        row = report[level]
        cells = [_percent(row[score]) for score in _SCORES]
        interval = row.get("mAP_interval")
        cells.append("-".join(map(_percent, interval)) if interval else "-")
        lines.append(f"| {level} | {' | '.join(cells)} |")
    lines += ["", "Protocol:", ""]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in report["protocol"].items()]
    if words.after_scores:
        lines += ["", words.after_scores]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _preprocessing(about: dict, words: Words) -> str:
    inside = about["preprocessing"]
    lines = [
        f"- in: {words.takes}, of any size",
        f"- inside: channels to {inside['channel_order'].upper()}, then (x - mean) / std, mean "
        f"{list(inside['mean'])}, std {list(inside['std'])}",
    ]
    for key in ("scales", "precision", "quantize"):
        if key in about:
            lines.append(f"- {key}: {_text(about[key])}")
    if "upright" in about:
        turned = "turned by their EXIF orientation" if about["upright"] else "not turned by EXIF"
        lines.append(f"- encoded photos are {turned}")
    if about.get("whitening"):
        lines.append("- the descriptor is whitened inside")
    return "\n".join(lines)


def _text(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _use(name: str, about: dict, words: Words) -> str:
    scales = str(list(about.get("scales", ())))
    code = words.use.replace("NAME", name).replace("SCALES", scales)
    least = least_tensorflow(about["mode"], about["precision"]) if "precision" in about else ""
    runs = f"\nIt runs in TensorFlow {least} and newer.\n" if least else ""
    return f"```python\n{code}```\n{words.after_use}{runs}"


def _origin(about: dict) -> str:
    lines = [f"- weights, sha256: `{about['weights_sha256']}`"]
    lines += [f"- {key}: {_text(value)}" for key, value in about["provenance"].items()]
    return "\n".join(lines)
