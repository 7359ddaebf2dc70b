"""The report of the quickstart: scores for programs, a page for people."""

import pathlib
from collections.abc import Mapping, Sequence

from dolg_tf.apps.pictures.ranked_list import encoded
from dolg_tf.apps.report.page import Picture
from dolg_tf.apps.report.quickstart_layout import SPLITS, VARIANTS
from dolg_tf.apps.report.tables import interval
from dolg_tf.evaluation.revisited.score import LEVELS
from dolg_tf.stage import files


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def score_table(scores: Mapping[str, Mapping[str, Mapping]]) -> list[str]:
    """Returns the lines of a Markdown table of mAP in percent, with a dash where nothing counts.

    Args:
      scores: {variant: {split: scores of an evaluation}}; variants and splits may be missing.
    """
    rows = [
        [
            split,
            VARIANTS[variant][0],
            *(interval(scores[variant][split][level]) for level in LEVELS),
        ]
        for split in SPLITS
        for variant in VARIANTS
        if split in scores.get(variant, ())
    ]
    return _table(["landmarks", "descriptor", *(f"{level} mAP %" for level in LEVELS)], rows)


def _protocol_sentence(protocol: Mapping) -> str:
    crops = {
        "box": "queries are cut to their boxes, index photos are whole",
        "none": "**queries are NOT cut to their boxes**",
    }
    crop = crops.get(protocol.get("query_crop"), "whether queries were cut is not known")
    scales = protocol.get("index_scales")
    text = f"Revisited Oxford/Paris protocol: {crop}"
    if scales:
        plural = "s" if len(scales) > 1 else ""
        text += f"; {len(scales)} scale{plural} ({', '.join(f'{scale:g}' for scale in scales)})"
    distractors = protocol.get("distractors") or 0
    text += f"; {distractors:,} distractors" if distractors else "; no distractors"
    return text + "; exact search by inner product, no re-ranking."


def _protocols(scores: Mapping) -> list[str]:
    """Returns a line per split: how many photos, and the protocol of the first variant there."""
    lines = []
    for split in SPLITS:
        for variant in VARIANTS:
            protocol = scores.get(variant, {}).get(split, {}).get("protocol")
            if protocol:
                count = f"{protocol['queries']:,} queries, {protocol['index']:,} index photos"
                lines.append(
                    f"- {split} ({SPLITS[split]}): {count}. {_protocol_sentence(protocol)}"
                )
                break
    return lines


def _page(scores: Mapping, facts: Mapping[str, object], pictures: Sequence[Picture]) -> str:
    lines = ["# Quickstart", ""]
    lines += [
        "Photos were written to TFRecords, a small DOLG was trained on them, "
        "exported as a SavedModel, and asked to find photos of the same landmark. Mean average "
        "precision (mAP) is 100 when every photo of the query's landmark comes before every "
        "other one; brackets hold the 95 % bootstrap interval over queries.",
        "",
        "## Scores",
        "",
        *score_table(scores),
        "",
        *_protocols(scores),
        "",
    ]
    lines += [f"- {VARIANTS[v][0]}: {VARIANTS[v][1]}" for v in VARIANTS if v in scores]
    if pictures:
        lines += ["", "## What it finds"]
    for picture in pictures:
        lines += ["", f"![{picture.alt}]({picture.name}.png)"]
        if picture.caption:
            lines += ["", picture.caption]
    if facts:
        lines += ["", "## The run", ""]
        lines += _table(["fact", "value"], [[key, str(value)] for key, value in facts.items()])
    return "\n".join(lines) + "\n"


def write_quickstart_report(
    output_dir: files.Path,
    scores: Mapping[str, Mapping[str, Mapping]],
    facts: Mapping[str, object],
    pictures: Sequence[Picture] = (),
) -> pathlib.Path:
    """Writes report.json, report.md and the pictures of a quickstart run.

    Args:
      output_dir: made when it does not exist.
      scores: {"trained"|"untrained"|"colour_histogram": {"seen"|"unseen": what
        `dolg_tf.evaluation.revisited.score.evaluate` returned}}; splits and variants may be
        missing; report.json is exactly this.
      facts: shown under "The run", such as photos, steps and times.
      pictures: shown under the scores.

    Returns:
      The path of report.md.
    """
    output_dir = pathlib.Path(output_dir)
    unknown = [v for v in scores if v not in VARIANTS]
    unknown += [s for splits in scores.values() for s in splits if s not in SPLITS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {[*VARIANTS, *SPLITS]}")
    for picture in pictures:
        files.write_bytes(output_dir / f"{picture.name}.png", encoded(picture.figure))
    files.write_json(output_dir / "report.json", scores)
    files.write_text(output_dir / "report.md", _page(scores, facts, pictures))
    return output_dir / "report.md"
