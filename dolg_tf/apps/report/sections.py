"""The sections of the report: what each is made from, and what cannot be shown and why."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from dolg_tf.apps.report.figures import (
    descriptor_maps,
    distractors,
    embedding_map,
    matches,
    precision_recall,
    queries,
    scores,
    similarities,
    training_curves,
)
from dolg_tf.apps.report.figures.style import LEVEL, percent
from dolg_tf.apps.report.page import Block, Heading, Note, Picture, Section
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.extract.model import LoadedModel
from dolg_tf.stage.config import InputError

Load = Callable[[], LoadedModel]
"""Loads the network at its first call, and gives it again at later ones."""


@dataclasses.dataclass(frozen=True)
class ReportSection:
    """How a section is made, and from what.

    Attributes:
      show: function of the run, and of what else it takes, that yields the blocks.
      takes: "run": nothing else. "evaluations": all of them. "scores", "descriptors", "photos":
        one evaluation that has these; it is called for each. "model": such a one, and the network.
        "local": such a one, and the network or None, where local feature sets take its place.
      headings: whether each of several evaluations has a heading; else small pictures stand side
        by side, and notes below.
      words: a paragraph before the pictures, if there are any.
    """

    show: Callable[..., Iterator[Block]]
    takes: str
    headings: bool = False
    words: str = ""


# In the order of the page: how good it is and what it finds, before curves.
REPORT_SECTIONS: dict[str, ReportSection] = {
    "Scores": ReportSection(scores.show, "evaluations"),
    "Queries": ReportSection(queries.show, "scores", headings=True),
    "Why do these match?": ReportSection(matches.show, "local", headings=True, words=matches.WORDS),
    "What a descriptor saw": ReportSection(
        descriptor_maps.show, "model", headings=True, words=descriptor_maps.WORDS
    ),
    "Precision and recall": ReportSection(precision_recall.show, "descriptors"),
    "Similarities": ReportSection(similarities.show, "descriptors"),
    "Distractors": ReportSection(distractors.show, "descriptors"),
    "Map of the descriptors": ReportSection(embedding_map.show, "descriptors"),
    "Training": ReportSection(training_curves.show, "run"),
}


def make_section(
    title: str, run: RunFiles, evaluations: Sequence[Evaluation], load: Load
) -> Section:
    """Returns a section of the report, with a note of what is lacking.

    Args:
      title: a key of REPORT_SECTIONS.
      run: the files.
      evaluations: of the run.
      load: the network.
    """
    section = REPORT_SECTIONS[title]
    if section.takes == "run":
        return Section(title, list(section.show(run)))
    if section.takes == "evaluations":
        return Section(title, list(section.show(run, evaluations)))
    blocks = []
    for one in evaluations:
        # A note that applies to all appears once.
        own = [block for block in _blocks_of(section, run, one, load) if block not in blocks]
        if own and section.headings and len(evaluations) > 1:
            own.insert(0, Heading(one.name.capitalize()))
        blocks += own
    if not section.headings:
        blocks.sort(key=lambda block: isinstance(block, Note))
    if section.words and any(isinstance(block, Picture) for block in blocks):
        blocks.insert(0, section.words)
    return Section(title, blocks)


def _blocks_of(
    section: ReportSection, run: RunFiles, one: Evaluation, load: Load
) -> Iterator[Block]:
    """Yields what is shown of an evaluation, or a note of what is lacking for it."""
    if reason := one.lacking(run, section.takes):
        yield Note(reason)
        return
    try:
        more = []
        if section.takes in ("model", "local"):
            more = [_load_for(one, load) if run.saved_model else None]
        yield from section.show(run, one, *more)
    except InputError as error:  # such as a photo that is gone: the rest is still worth showing
        yield Note(str(error))


def _load_for(one: Evaluation, load: Load) -> LoadedModel:
    """Loads the network that described the photos of an evaluation.

    Raises:
      InputError: when it is another.
    """
    model, own = load(), one.inputs.protocol["model_hash"]
    if own and model.about.model_hash != own:
        raise InputError(f"--saved_model={model.path} is not the model of the descriptors")
    return model


def without_empty(sections: Sequence[Section]) -> list[Section]:
    """Returns sections that show something, and a last one with the reasons for those that do not.

    Reasons that sections share appear once.
    """
    shown = [section for section in sections if not section.is_empty]
    reasons = {}
    for section in sections:
        for note in section.notes if section.is_empty else ():
            reasons.setdefault(note, []).append(section.title)
    notes = [Note(text, ", ".join(titles)) for text, titles in reasons.items()]
    return [*shown, Section("Not shown", notes)] if notes else shown


def summary(evaluations: Sequence[Evaluation]) -> str:
    """Returns the main numbers in a sentence; "" when nothing was scored."""
    parts = [
        f"{percent(one.own_scores[LEVEL]['mAP'])} on {one.name}"
        for one in evaluations
        if one.own_scores
    ]
    return f"mAP at level {LEVEL}: {', '.join(parts)}." if parts else ""
