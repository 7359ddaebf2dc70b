"""A page that shows how good a run is: scores, rankings, matches, maps, curves.

dolg report --run=runs/quickstart --output=report/
"""

import functools
import logging
import pathlib

from dolg_tf.apps.pictures.ranked_list import new_figure
from dolg_tf.apps.report import page
from dolg_tf.apps.report.page import Note, Section
from dolg_tf.apps.report.run_files import (
    DESCRIPTORS,
    ReportConfig,
    find_files,
    read_evaluation,
)
from dolg_tf.apps.report.sections import REPORT_SECTIONS, make_section, summary, without_empty
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


def write_report(settings: ReportConfig) -> pathlib.Path:
    """Writes a page about a run: its files in, report.html and PNGs out.

    What cannot be shown is named in the page and in the log, with the flag that would show it.

    Args:
      settings: see `--help`.

    Returns:
      The path of report.html.

    Raises:
      InputError: when there is nothing to show, a file is damaged, files do not belong together, or
        the output holds something else.
    """
    page.check_folder(settings.output)
    new_figure(1, 1)  # says at once that matplotlib or, below, Jinja2 is missing
    page.template()
    run = find_files(settings)
    evaluations = [read_evaluation(run, task) for task in run.tasks]
    load = functools.cache(lambda: load_model(run.saved_model))
    titles = [t for t, made in REPORT_SECTIONS.items() if evaluations or made.takes == "run"]
    made = progress.track(titles, len(titles), "read and compute", "sections", every=5)
    sections = [make_section(title, run, evaluations, load) for title in made]
    if not evaluations:
        lacking = run.lacking(**dict.fromkeys(DESCRIPTORS, ""))
        sections.append(Section("Retrieval", [Note(f"scores, curves, rankings: {lacking}")]))
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
    lead = summary(evaluations)
    shown = without_empty(sections)
    path = page.write_page(settings.output, f"Retrieval report: {name}", shown, lead)
    log.info("%s: written", path)
    return path
