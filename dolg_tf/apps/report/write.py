"""A page that shows how good a run is: curves, scores, rankings, maps, matches.

dolg report --run=runs/quickstart --output=report/
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Sequence

from dolg_tf.apps.pictures.ranked_list import new_figure
from dolg_tf.apps.report import page, photo_sections
from dolg_tf.apps.report import sections as report_sections
from dolg_tf.apps.report.page import Note, Section
from dolg_tf.apps.report.run_files import (
    DESCRIPTORS,
    Evaluation,
    ReportConfig,
    RunFiles,
    find_files,
    read_evaluation,
)
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


def _section_makers(
    run: RunFiles, evaluations: Sequence[Evaluation]
) -> list[Callable[[], Section]]:
    """Returns functions that make the sections of a report, in their order."""
    makers = [functools.partial(report_sections.training_section, run)]
    if not evaluations:
        lacking = run.lacking(**dict.fromkeys(DESCRIPTORS, ""))
        note = Note(f"scores, curves, rankings: {lacking}")
        return [*makers, lambda: Section("Retrieval", [note])]
    of_descriptors = (
        report_sections.scores_section,
        report_sections.queries_section,
        report_sections.precision_section,
        report_sections.similarity_section,
        report_sections.distractor_section,
        report_sections.map_section,
    )
    makers += [functools.partial(make, run, evaluations) for make in of_descriptors]
    load = functools.cache(lambda: load_model(run.saved_model))
    of_photos = (photo_sections.saw_section, photo_sections.match_section)
    return [*makers, *(functools.partial(make, run, evaluations, load) for make in of_photos)]


def write_report(settings: ReportConfig) -> pathlib.Path:
    """Writes a page about a run: its files in, report.html and PNGs out.

    What cannot be shown is named in the page and in the log, with the flag that would show it.

    Args:
      settings: see `--help`.

    Returns:
      The path of report.html.

    Raises:
      InputError: when there is nothing to show, a file is damaged, files do not go together, or the
        output holds something else.
    """
    page.check_folder(settings.output)
    new_figure(1, 1)  # matplotlib and Jinja2 are there, or nothing is read
    page.template()
    run = find_files(settings)
    evaluations = [read_evaluation(run, task) for task in run.tasks]
    makers = _section_makers(run, evaluations)
    made = progress.track(makers, len(makers), "read and compute", "sections", every=5)
    sections = [make() for make in made]
    if all(section.is_empty for section in sections):
        where = f"--run={run.run} has" if run.run else "no run is given, there is"
        raise InputError(
            f"{where} nothing to show: neither metrics.jsonl of a training nor scores or "
            "descriptors of a quickstart; give the folder of a run, or --scores, or "
            "--ground_truth, --query_descriptors and --index_descriptors"
        )
    for section in sections:
        for note in section.notes:
            log.warning("%s: not shown: %s", section.title, note)
    names = [task.name for task in run.tasks]
    name = pathlib.Path(run.run).resolve().name if run.run else ", ".join(names)
    lead = report_sections.summary(evaluations)
    path = page.write_page(settings.output, f"Retrieval report: {name}", sections, lead)
    log.info("%s: written", path)
    return path
