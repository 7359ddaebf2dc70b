"""The scores by the Revisited Oxford/Paris protocol, as values and as text."""

import dataclasses

from dolg_tf.evaluation.revisited import published
from dolg_tf.evaluation.revisited.inputs import NOT_CUT
from dolg_tf.evaluation.revisited.published import percent
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.stage.command import one_line

# level: (labels that count as positives, labels that are taken out of the ranking)
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
CUTOFFS = (1, 5, 10)
_CROPS = {
    "box": "queries cut to their boxes",
    "none": NOT_CUT,
    None: "not known whether queries were cut to their boxes",
}


@dataclasses.dataclass(frozen=True)
class LevelScores:
    """The scores of one level, as fractions; None where no query has a positive.

    Attributes:
      mAP: mean of `AP` over the queries that have a positive.
      mP: {1: mP@1, 5: mP@5, 10: mP@10}, mean precision among the first k photos.
      AP: average precision per query; None for a query without positives.
      mAP_interval: [low, high], the 95 % bootstrap interval of `mAP` over queries.
    """

    mAP: float | None
    mP: dict[int, float | None]
    AP: list[float | None]
    mAP_interval: list[float] | None

    def report(self) -> dict:
        """Returns {"mAP", "mP@1", "mP@5", "mP@10", "AP", "mAP_interval"}, plain JSON values."""
        precisions = {f"mP@{k}": value for k, value in self.mP.items()}
        return {"mAP": self.mAP, **precisions, "AP": self.AP, "mAP_interval": self.mAP_interval}


@dataclasses.dataclass(frozen=True)
class RevisitedScores:
    """The scores of one evaluation. `scores["medium"]` is `scores.medium`; `print` shows a table.

    Attributes:
      easy, medium, hard: the scores of each level.
      protocol: the conditions, see `evaluate_revisited`; empty when only rankings were scored.
      without_distractors: the scores of the same search without distractors; None: there are none.
    """

    easy: LevelScores
    medium: LevelScores
    hard: LevelScores
    protocol: dict = dataclasses.field(default_factory=dict)
    without_distractors: "RevisitedScores | None" = None

    def __getitem__(self, level: str) -> LevelScores:
        """Returns the scores of a level: easy, medium or hard."""
        if level not in LEVELS:
            raise KeyError(f"{level!r} is not one of {', '.join(LEVELS)}")
        return getattr(self, level)

    def __str__(self) -> str:
        return table(self)

    def report(self) -> dict:
        """Returns the contents of report.json, plain JSON values."""
        found = {level: self[level].report() for level in LEVELS}
        if self.without_distractors is not None:
            found["without_distractors"] = self.without_distractors.report()
        return {**found, "protocol": self.protocol} if self.protocol else found


# --- as text ---------------------------------------------------------------------------


def summary(task: GroundTruth, scores: RevisitedScores, protocol: dict, distractors: int) -> str:
    """Returns what one evaluation prints: its conditions, its scores and published ones.

    Args:
      task: the ground truth.
      scores: its scores.
      protocol: of the report.
      distractors: how many photos were searched besides those of the ground truth.
    """
    title = f"{task.name}: {len(task.query_ids):,} queries, {len(task.index_ids):,} photos"
    if distractors:
        title += f" and {distractors:,} distractors"
    title += "; " + _CROPS[protocol["query_crop"]]
    if "search" in protocol:
        title += f"; searched by {protocol['search'].get('method', 'another program')}"
    numbers = dict(protocol["rerank"])
    if (method := numbers.pop("method")) != "none":
        told = [f"{k} {x}" if isinstance(x, str) else f"{k} {x:g}" for k, x in numbers.items()]
        title += ", ".join(["; re-ranked: " + method, *told])
    lines = [title, *(f"note: {remark}" for remark in protocol["remarks"])]
    lines = [one_line(line) for line in lines]
    lines.append(table(scores))
    dataset = published.dataset_of(task)
    if dataset is not None:
        own = (scores.medium.mAP, scores.hard.mAP)
        lines += ["", *published.beside(own, protocol["query_crop"], dataset, distractors)]
    return "\n".join(lines)


def table(scores: RevisitedScores) -> str:
    """Returns the scores as a small text table, in percent, with a dash where there are none."""
    names = ("mAP", *(f"mP@{k}" for k in CUTOFFS))
    lines = [" " * 8 + "".join(f"{name:>7}" for name in names) + "   95 % of mAP"]
    for level in LEVELS:
        row = scores[level]
        values = (row.mAP, *(row.mP[k] for k in CUTOFFS))
        line = f"{level:<8}" + "".join(map(percent, values))
        if row.mAP_interval is not None:
            low, high = row.mAP_interval
            line += f"   {100 * low:.2f}-{100 * high:.2f}"
        lines.append(line)
    return "\n".join(lines)
