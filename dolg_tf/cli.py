"""`dolg COMMAND --flag=value`: every stage behind one door, imported when it is asked for."""

import importlib
import sys
import typing
from collections.abc import Sequence

from dolg_tf.stage import signals  # light; the others are imported after a signal can end us


class Command(typing.NamedTuple):
    """A stage as a command: what it does, in one line, and "module:function" of its stage.

    The function's annotated parameters are the configurations whose options become flags. Of some
    commands the same one continues after an interruption.
    """

    words: str
    stage: str
    continues: bool = False


_HELP = ("help", "h")
# In the order of the work.
COMMANDS = {
    "search": Command(
        "where else is this place? Search your own photos",
        "dolg_tf.pipelines.own_photos.command:search",
        continues=True,
    ),
    "quickstart": Command(
        "the whole chain, from photos to a scored report",
        "dolg_tf.pipelines.quickstart:quickstart",
        continues=True,
    ),
    "draw": Command(
        "procedural landmark photos", "dolg_tf.data.procedural.write:write_toy", continues=True
    ),
    "records": Command(
        "photos and labels -> TFRecords", "dolg_tf.data.records.build:build_records", continues=True
    ),
    "ground-truth": Command(
        "labelled photos -> ground truths", "dolg_tf.data.own_photos:ground_truths"
    ),
    "verify": Command(
        "check records, sets, indexes, models, runs and exports", "dolg_tf.pipelines.verify:verify"
    ),
    "convert": Command(
        "the authors' checkpoints -> model directory, and back",
        "dolg_tf.weights.convert:convert_checkpoint",
    ),
    "train": Command("TFRecords -> run directory", "dolg_tf.pipelines.train:train", continues=True),
    "train-how": Command(
        "photos of landmarks -> run directory of HOW, for ASMK",
        "dolg_tf.pipelines.train:train_how",
        continues=True,
    ),
    "summary": Command(
        "parameters and arithmetic of a network", "dolg_tf.modeling.summary:print_summary"
    ),
    "export": Command(
        "network or ImageNet weights -> SavedModel, ONNX or LiteRT file",
        "dolg_tf.pipelines.export:export",
    ),
    "model-card": Command("model card of a network", "dolg_tf.serving.model_card:write_model_card"),
    "extract": Command(
        "SavedModel and photos -> descriptor set",
        "dolg_tf.retrieval.extract.stage:extract",
        continues=True,
    ),
    "extract-beam": Command(
        "the same on a cluster, by Apache Beam",
        "dolg_tf.retrieval.extract.beam:extract_beam",
        continues=True,
    ),
    "colour-histogram": Command(
        "photos -> colour histograms, the baseline",
        "dolg_tf.retrieval.extract.colour_histogram:extract_colour_histograms",
    ),
    "delf": Command(
        "sets of descriptors and of local features -> DELF's files, and back",
        "dolg_tf.retrieval.datum_io:convert",
    ),
    "whiten fit": Command(
        "learn a whitening, or a reduction of local features",
        "dolg_tf.retrieval.whitening.stages:fit",
    ),
    "whiten apply": Command(
        "whiten a descriptor set, or reduce a local one", "dolg_tf.retrieval.whitening.stages:apply"
    ),
    "whiten import": Command(
        "DELF's PCA of local features -> a reduction", "dolg_tf.retrieval.whitening.delf:convert"
    ),
    "index build": Command("descriptor set -> index", "dolg_tf.retrieval.index.stages:build"),
    "index query": Command(
        "the nearest photos of each query, as CSV", "dolg_tf.retrieval.index.answers:query"
    ),
    "index add": Command("add descriptors to an index", "dolg_tf.retrieval.index.stages:add"),
    "index remove": Command("remove photos from an index", "dolg_tf.retrieval.index.stages:remove"),
    "index push": Command(
        "copy an index to a vector engine", "dolg_tf.retrieval.index.engines:push", continues=True
    ),
    "index rebuild": Command(
        "an index for another model or of another kind",
        "dolg_tf.retrieval.index.stages:rebuild",
        continues=True,
    ),
    "asmk codebook": Command(
        "local features -> visual words", "dolg_tf.retrieval.asmk.stages:codebook", continues=True
    ),
    "asmk build": Command(
        "local features and visual words -> ASMK index",
        "dolg_tf.retrieval.asmk.stages:build",
        continues=True,
    ),
    "asmk query": Command(
        "scores of all photos of an ASMK index for each query",
        "dolg_tf.retrieval.asmk.stages:query",
    ),
    "calibrate": Command(
        "labelled pairs -> a threshold for the same place",
        "dolg_tf.evaluation.calibrate:calibrate",
    ),
    "prepare-revisited": Command(
        "lay out Revisited Oxford and Paris",
        "dolg_tf.evaluation.revisited.prepare:prepare",
        continues=True,
    ),
    "evaluate revisited": Command(
        "mAP on Revisited Oxford and Paris, or your own ground truth",
        "dolg_tf.evaluation.revisited.score:evaluate",
    ),
    "evaluate gldv2": Command(
        "mAP@100 and GAP on Google Landmarks v2",
        "dolg_tf.evaluation.gldv2.score:evaluate",
        continues=True,
    ),
    "submit": Command(
        "descriptor sets -> Kaggle's submission.csv",
        "dolg_tf.evaluation.gldv2.submission:write_submission",
        continues=True,
    ),
    "report": Command("a page about a run: report.html", "dolg_tf.apps.report.write:write_report"),
    "match": Command("why two photos match, as a picture", "dolg_tf.apps.pictures.match:match"),
    "demo": Command("search an index in the browser", "dolg_tf.apps.demo.serve:demo"),
}


def main(arguments: Sequence[str] | None = None, program: str = "dolg") -> typing.NoReturn:
    """Runs a command and exits.

    Args:
      arguments: the command's name and its flags; None: those of the command line.
      program: what the user typed before them.
    """
    signals.install(program)
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = words[0].lstrip("-") if words else "help"
    if first in _HELP:
        words = [word for word in words if word.lstrip("-") not in _HELP]
        if words:  # `dolg help extract`
            main([*words, "--help"], program)
        _say(program, _help_text(program, COMMANDS))
    if first == "version":
        _say(program, f"dolg_tf {importlib.import_module(__package__).__version__}")
    for number in (2, 1):
        name = " ".join(words[:number])
        if name in COMMANDS:
            run(name, words[number:], f"{program} {name}")
    group = {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{words[0]} ")}
    if group and len(words) == 1:
        sys.exit(_help_text(program, group))
    if group and words[1].lstrip("-") in _HELP:
        _say(program, _help_text(program, group))
    if group:
        _refuse(f"{program} {words[0]}", words[1], [name.split()[1] for name in group])
    _refuse(program, words[0], [*COMMANDS, *_groups()])


def _say(program: str, text: str) -> typing.NoReturn:
    from dolg_tf.stage import command

    with command.exit_code(program):
        command.show(text)
    sys.exit(0)


def _refuse(program: str, word: str, known: list[str]) -> typing.NoReturn:
    import difflib

    near = difflib.get_close_matches(word, known, 1)
    hint = f"did you mean `{program} {near[0]}`?" if near else f"see `{program} --help`"
    sys.exit(f"{program}: error: {word!r} is not a command; {hint}")


def run(name: str, arguments: Sequence[str], program: str) -> typing.NoReturn:
    """Runs one of `COMMANDS` with these flags and exits."""
    signals.install(program)
    from dolg_tf.stage import command, installed

    entry = COMMANDS[name]
    module, function = entry.stage.split(":")
    with command.exit_code(program):
        stage = getattr(importlib.import_module(module), function)
        classes = [hint for key, hint in typing.get_type_hints(stage).items() if key != "return"]
    recipes = installed.find_recipes(name)
    command.run(program, stage, classes, arguments, recipes, entry.continues)


def _groups() -> list[str]:
    """Returns the first words of commands of two words."""
    return list(dict.fromkeys(name.split()[0] for name in COMMANDS if " " in name))


def _help_text(program: str, shown: dict[str, Command]) -> str:
    lines = [f"usage: {program} COMMAND [--flag=value ...]", ""]
    width = max(map(len, shown)) + 2
    lines += [f"  {name:<{width}}{entry.words}" for name, entry in shown.items()]
    return "\n".join([*lines, "", f"`{program} COMMAND --help` lists the flags of a command."])
