"""Published scores on Revisited Oxford and Paris, printed beside one's own.

They are copied from their sources, not measured here; what a source does not give is left out.
Each says whether queries were cut to their boxes, as the benchmark requires: the first DOLG figures
are of whole queries, which show more of the landmark and score higher with distractors.
"""

import dataclasses
import hashlib

from dolg_tf.retrieval.ground_truth import GroundTruth

DISTRACTORS = 1_001_001  # photos of R1M
# SHA-256 of the names of queries and index, in order: the file itself may have any name.
_NAMES = {
    "6f73ea0951a4319990d55280f62c81002ab829e24511f9ff4508e2d4f49c6011": "roxford5k",
    "7e73ea76330f2f8afd53717fa40f0846473c16e12d713575eac1b38da7d51dc9": "rparis6k",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of a published table.

    Attributes:
      method: its name in the table.
      source: where it was published.
      cropped: whether queries were cut to their boxes.
      percent: mAP in percent, {(dataset, distractors): (medium, hard)}; None: not published.
    """

    method: str
    source: str
    cropped: bool
    percent: dict[tuple[str, int], tuple[float, float | None]]


def _row(method: str, source: str, cropped: bool, *percent: float | None) -> Published:
    """Takes scores in the order of the papers: ROxf-M, +1M, RPar-M, +1M, then the same for H."""
    tasks = [(name, count) for name in ("roxford5k", "rparis6k") for count in (0, DISTRACTORS)]
    pairs = zip(percent[:4], percent[4:], strict=True)
    found = {task: pair for task, pair in zip(tasks, pairs, strict=True) if pair[0] is not None}
    return Published(method, source, cropped, found)


_DELG = "Cao et al., ECCV 2020, arXiv 2001.05027"
_HOW = "Tolias et al., ECCV 2020, arXiv 2007.13172"
_HOW_CODE = "its authors, github.com/gtolias/how"
_ASMK = "Teichmann et al., CVPR 2019, arXiv 1812.01584"
_ASMK_CODE = "its authors, DELF's DETECT_TO_RETRIEVE_INSTRUCTIONS.md"
_DELF = "Radenović et al., CVPR 2018, arXiv 1803.11285"
_DELG_CODE = "quoted at github.com/feymanpriv/DELG"
_DOLG = "Yang et al., ICCV 2021, arXiv 2108.02927"
_CORRECTED = "its authors, github.com/feymanpriv/DOLG"

# fmt: off
ROWS = (
    _row("DELF-ASMK* + SP", _DELF, True,
         67.80, 53.80, 76.90, 57.30, 43.10, 31.20, 55.40, 26.40),
    _row("DELF-R-ASMK*", _ASMK_CODE, True,
         73.30, None, None, None, 47.60, None, None, None),
    _row("DELF-R-ASMK* + SP", _ASMK, True,
         76.00, 64.00, 80.20, 59.70, 52.40, 38.10, 58.60, 29.40),
    _row("R18-HOW, 1,000 features", _HOW_CODE, True,
         75.10, None, 79.40, None, None, None, None, None),
    _row("R50-HOW, 1,000 features", _HOW_CODE, True,
         78.30, None, 80.10, None, None, None, None, None),
    _row("R50-HOW, 2,000 features", _HOW, True,
         79.40, 65.80, 81.60, 61.80, 56.90, 38.90, 62.40, 33.70),
    _row("R50-DELG global", _DELG, True,
         73.60, 60.60, 85.70, 68.60, 51.00, 32.70, 71.50, 44.40),
    _row("R50-DELG + SP", _DELG_CODE, True,
         78.30, None, None, None, None, None, None, None),
    _row("R101-DELG global", _DELG, True,
         76.30, 63.70, 86.60, 70.60, 55.60, 37.50, 72.40, 46.90),
    _row("R101-DELG + SP", _DELG, True,
         81.20, 69.10, 87.20, 71.50, 64.00, 47.50, 72.80, 48.70),
    _row("R50-DOLG, corrected", _CORRECTED, True,
         81.20, 71.36, 90.07, 78.99, 62.55, 47.34, 79.20, 59.75),
    _row("R101-DOLG, corrected", _CORRECTED, True,
         82.37, 73.63, 90.97, 80.44, 64.93, 51.57, 81.71, 62.95),
    _row("R50-DOLG, paper", _DOLG, False,
         80.50, 76.58, 89.81, 80.79, 58.82, 52.21, 77.70, 62.83),
    _row("R101-DOLG, paper", _DOLG, False,
         81.50, 77.43, 91.02, 83.29, 61.10, 54.81, 80.30, 66.69),
    _row("R50-DOLG, corrected", _CORRECTED, False,
         82.38, 77.78, 90.94, 82.16, 62.92, 55.48, 80.48, 65.77),
    _row("R101-DOLG, corrected", _CORRECTED, False,
         83.22, 78.96, 91.64, 82.89, 64.83, 57.86, 82.56, 67.34),
)
# fmt: on


def dataset_of(task: GroundTruth) -> str | None:
    """Returns "roxford5k" or "rparis6k" if the lists of photos are theirs, else None.

    Scores of the original protocol are not comparable.
    """
    names = "\n".join((*task.query_ids, *task.index_ids))
    if task.original:
        return None
    return _NAMES.get(hashlib.sha256(names.encode()).hexdigest())


def percent(value: float | None) -> str:
    """Returns a fraction in percent, 7 characters wide; a dash for None."""
    return f"{'-' if value is None else format(100 * value, '.2f'):>7}"


def beside(
    own: tuple[float | None, float | None], query_crop: str | None, dataset: str, distractors: int
) -> list[str]:
    """Returns the published rows of one task as lines of text, with one's own scores below.

    Args:
      own: mAP of medium and hard, as fractions.
      query_crop: "box", "none", or None where it is not known.
      dataset: roxford5k or rparis6k.
      distractors: photos that were searched beside those of the ground truth.
    """
    rows = [row for row in ROWS if (dataset, distractors) in row.percent]
    if not rows:
        return [f"nothing is published with {distractors:,} distractors; R1M has {DISTRACTORS:,}"]
    crops = {True: "cut", False: "NOT cut", "box": "cut", "none": "NOT cut", None: "not known"}
    lines = [f"{'mAP in percent':<24} medium   hard  {'queries':<9}  source"]
    for row in rows:
        medium, hard = row.percent[dataset, distractors]
        hard = "-" if hard is None else format(hard, ".2f")
        cells = f"{medium:>7.2f}{hard:>7}  {crops[row.cropped]:<9}"
        lines.append(f"{row.method:<24}{cells}  {row.source}")
    lines.append(f"{'yours':<24}{''.join(map(percent, own))}  {crops[query_crop]:<9}")
    return [line.rstrip() for line in lines]
