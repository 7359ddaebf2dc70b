"""Is it the same place? A threshold on the similarity of two photos, from labelled pairs.

    dolg calibrate --labels_csv=labels.csv --index_descriptors=SET \\
        --output=calibration.json --index=INDEX

The threshold is the lowest with the wanted precision, so the one with the highest recall. The
precision holds where as large a share of the pairs shows the same place as among the labelled pairs
(`prior`). A share f of the other pairs passes, whatever their number (`false_positive_rate`): with
recall r and a prior p the precision is r p / (r p + f (1 - p)). A search compares a query with
every photo of the index, and the larger the index, the smaller p. So calibrate on pairs as they
will come: the queries and the index of a ground truth of that size. Precision and recall are
measured on the pairs that the threshold was chosen on, so on few pairs they flatter it.

With local features, the weight of geometric verification is fitted too, on the same photos, and
with --min_inliers a pair passes only if so many of their local features agree.
"""

import dataclasses
import logging
from typing import NamedTuple

import numpy as np

from dolg_tf.evaluation import geometric_weight, labelled_pairs
from dolg_tf.evaluation.geometric_weight import WeightConfig
from dolg_tf.evaluation.labelled_pairs import Pairs
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rows import blocks
from dolg_tf.retrieval.verification.pairs import DEFAULT, VerifyConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Two float32 products of the same unit vectors differ by less: the weakest pair that passes must
# pass again in a search.
_ROUNDING = 1e-6
_CURVE_POINTS = 200
_RESAMPLES = 1000
_BLOCK = 16384  # rows that are encoded at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig(WeightConfig, NormConfig):
    """The pairs that the threshold is fitted on, and the weight."""

    index_descriptors: str = option("descriptor set of the photos that are searched")
    query_descriptors: str = option("descriptor set of the queries; empty: the same set", "")
    pairs: str = option("CSV id_a,id_b,same: a query, an index photo, and 1 or 0", "")
    ground_truth: str = option("gnd_*.pkl or gnd_*.mat: easy and hard show the same place", "")
    labels_csv: str = option("CSV path,landmark: all pairs of labelled photos", "")
    precision: float = option("share of the passing pairs that must show the same place", 0.95)
    min_inliers: int = option(
        "pairs pass only with this many inliers too, counted for the best photos of each query, "
        "and with a lower threshold; look before you choose: photos of other places reach 4 to 6 "
        "by chance, and more where there are many features. 0: the score decides alone",
        0,
    )
    output: str = option("calibration.json to write")
    index: str = option("index to store the threshold in; empty: none", "")

    def __post_init__(self):
        super().__post_init__()
        if self.pairs and self.fitting() is not None:
            raise InputError(
                "a weight is fitted on whole rankings; give --ground_truth or --labels_csv instead "
                "of --pairs, or calibrate the threshold alone"
            )
        if [self.pairs, self.ground_truth, self.labels_csv].count("") != 2:
            raise InputError("give one of --pairs, --ground_truth and --labels_csv")
        if not 0 < self.precision <= 1:
            raise InputError(f"--precision={self.precision} must be above 0 and at most 1")
        at_least(self, min_inliers=0)
        if self.min_inliers and self.fitting() is None:
            raise InputError(
                f"--min_inliers={self.min_inliers} needs local features: give --query_local and "
                "--index_local"
            )


# --- pairs -> threshold --------------------------------------------------------------


class Counts(NamedTuple):
    """How many pairs pass each threshold."""

    thresholds: np.ndarray  # float64 (T,), ascending
    same: np.ndarray  # int64 (T,), passing pairs of the same place
    different: np.ndarray  # int64 (T,), the other passing pairs
    all_same: int
    all_different: int


def count(pairs: Pairs) -> Counts:
    """Counts the pairs that pass, with one threshold for each similarity of a same pair.

    A pair with a similarity of -inf passes none.

    Raises:
      InputError: when one of the two kinds of pairs is missing.
    """
    scores = np.sort(np.concatenate([[], *(block.scores[block.same] for block in pairs())]))
    thresholds = np.unique(scores[scores > -np.inf]) - _ROUNDING
    passed = np.zeros(len(thresholds) + 1, np.int64)  # by how many thresholds a pair passes
    for block in pairs():
        number = np.searchsorted(thresholds, block.scores[~block.same], side="right")
        passed += np.bincount(number, minlength=len(passed))
    if not len(scores) or not passed.any():
        raise InputError(
            f"{len(scores)} pairs show the same place, {passed.sum()} do not; a threshold needs "
            "both kinds"
        )
    if not len(thresholds):
        raise InputError("no pair of the same place has --min_inliers; ask for fewer")
    return Counts(
        thresholds,
        same=len(scores) - np.searchsorted(scores, thresholds),
        different=np.cumsum(passed[::-1])[::-1][1:],
        all_same=len(scores),
        all_different=int(passed.sum()),
    )


def fit(pairs: Pairs, precision: float, seed: int = 0) -> dict:
    """Fits the threshold.

    Args:
      pairs: labelled pairs.
      precision: the least share of the passing pairs that must show the same place.
      seed: of the bootstrap.

    Returns:
      "threshold"; its "precision", "recall" and "false_positive_rate", with "precision_interval"
      and "recall_interval" (95 %); "prior"; "pairs": {"same", "different"}; "curve": a list of
      [threshold, precision, recall].

    Raises:
      InputError: when no threshold has this precision, or one kind of pairs is missing.
    """
    found = count(pairs)
    precisions = found.same / (found.same + found.different)
    recalls = found.same / found.all_same
    enough = np.flatnonzero(precisions >= precision)
    if not enough.size:
        best = int(np.argmax(precisions))
        raise InputError(
            f"no threshold reaches a precision of {precision:g} on these pairs; the best is "
            f"{precisions[best]:.4f} at {found.thresholds[best]:.4f}, with a recall of "
            f"{recalls[best]:.4f}: ask for less with --precision, or use better descriptors"
        )
    chosen = enough[0]
    threshold = float(found.thresholds[chosen])
    every = np.linspace(0, len(precisions) - 1, min(_CURVE_POINTS, len(precisions))).astype(int)
    shown = zip(found.thresholds[every], precisions[every], recalls[every], strict=True)
    return {
        "threshold": threshold,
        "precision": float(precisions[chosen]),
        "recall": float(recalls[chosen]),
        "false_positive_rate": float(found.different[chosen] / found.all_different),
        **_intervals(pairs, threshold, seed),
        "prior": found.all_same / (found.all_same + found.all_different),
        "pairs": {"same": found.all_same, "different": found.all_different},
        "curve": [[float(value) for value in point] for point in shown],
    }


def _intervals(pairs: Pairs, threshold: float, seed: int) -> dict:
    """Returns 95 % intervals of precision and recall at a threshold."""
    counts = {}  # query: passing same pairs, passing pairs, same pairs
    for queries, scores, same in pairs():
        # In float64: NumPy would round the threshold to float32, and a score below might reach it.
        passed = scores.astype(np.float64) >= threshold
        numbers, place = np.unique(queries, return_inverse=True)
        columns = [np.bincount(place, weights) for weights in (passed & same, passed, same)]
        for number, line in zip(numbers.tolist(), np.stack(columns, axis=1), strict=True):
            counts[number] = counts.get(number, 0) + line
    table = np.array([counts[number] for number in sorted(counts)])
    rng = np.random.default_rng(seed)
    sums = [table[rng.integers(len(table), size=len(table))].sum(0) for _ in range(_RESAMPLES)]
    good, passed, same = table.sum(0)
    drawn_good, drawn_passed, drawn_same = np.array(sums).T
    return {
        "precision_interval": _interval(good, passed, drawn_good, drawn_passed),
        "recall_interval": _interval(good, same, drawn_good, drawn_same),
    }


def _interval(good: float, whole: float, drawn_good: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Returns a 95 % interval of good / whole.

    The wider of two: the bootstrap knows that pairs of one query are alike, but gives a share of 1
    no width; Wilson's interval takes pairs as independent.

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    z, share = 1.96, good / whole
    center, scale = share + z * z / (2 * whole), 1 + z * z / whole
    reach = z * np.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    ends = np.quantile((drawn_good / np.maximum(drawn, 1))[drawn > 0], [0.025, 0.975])
    low, high = min(ends[0], (center - reach) / scale), max(ends[1], (center + reach) / scale)
    return [float(max(low, 0)), float(min(high, 1))]


def precision_at_prior(fitted: dict, prior: float) -> float:
    """Returns the precision when the share `prior` of all pairs shows the same place."""
    good, bad = fitted["recall"] * prior, fitted["false_positive_rate"] * (1 - prior)
    return good / (good + bad)


# --- command -------------------------------------------------------------------------


class _AsKept:
    """Rows as an approximate index stores them; its scores are products with these.

    Args:
      rows: (N, D), `Rows` or an array.
      approximate: the `faiss.IndexIVFPQ`.
    """

    def __init__(self, rows, approximate):
        self._approximate, self.shape = approximate, rows.shape
        codes = [approximate.sa_encode(block) for _, block in blocks(rows, _BLOCK)]
        self._codes = np.concatenate(codes)  # a few bytes per row

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        return self._approximate.sa_decode(self._codes[key])


def _read_sets(
    settings: CalibrateConfig, index: Index | None
) -> tuple[DescriptorSet, DescriptorSet]:
    """Returns queries and index photos, which share one object of ids when they are one set.

    Raises:
      InputError: when a set is empty, or one of them and the index were described differently.
    """
    searched = descriptors.read(settings.index_descriptors, settings.normalize)
    queries = searched
    if settings.query_descriptors:
        queries = descriptors.read(settings.query_descriptors, settings.normalize)
    for found in (queries, searched):
        if not len(found):
            raise InputError(f"{found.source} has no descriptors; extract it again")
    directory.check_same_space(map(directory.how_made, (searched, queries)))
    if index is not None:
        index.check_same(searched)
        if index.approximate is not None:
            kept = _AsKept(searched.descriptors, index.approximate)
            searched = dataclasses.replace(searched, descriptors=kept)
    return queries, searched


def _say(fitted: dict) -> None:
    same, different = fitted["pairs"]["same"], fitted["pairs"]["different"]
    fewest = fitted.get("geometric", {}).get("min_inliers", 0)
    log.info(
        "threshold %.4f%s: precision %.2f %% (95 %%: %.2f-%.2f), recall %.2f %% (%.2f-%.2f)",
        fitted["threshold"],
        f" and {fewest} inliers" if fewest else "",
        *(100 * x for x in (fitted["precision"], *fitted["precision_interval"])),
        *(100 * x for x in (fitted["recall"], *fitted["recall_interval"])),
    )
    log.info(
        "measured on %d pairs of the same place and %d others, one in %.0f; at one in %.0f the "
        "precision is %.2f %%",
        same,
        different,
        1 / fitted["prior"],
        10 / fitted["prior"],
        100 * precision_at_prior(fitted, fitted["prior"] / 10),
    )
    if "geometric" in fitted:
        geometric_weight.say(fitted["geometric"])


def _local_sets(
    settings: CalibrateConfig, verification: VerifyConfig, index: Index | None, one_set: bool
) -> dict[str, LocalFeatureSet]:
    """Returns the local feature sets of "query" and "index"; none where no weight is fitted."""
    if settings.min_inliers and index is not None and "local" not in index.meta:
        raise InputError(
            f"--index={index.path} has no local features, which a match with --min_inliers needs; "
            "build it with `dolg index build --local`"
        )
    if settings.fitting() is not None:
        return settings.local_sets(None if index is None else index.local, one_set)
    if verification != DEFAULT:
        raise InputError(
            "settings of geometric verification need local features: give --index_local"
        )
    return {}


def _pairs(settings: CalibrateConfig, queries: DescriptorSet, searched: DescriptorSet) -> Pairs:
    """Returns the labelled pairs."""
    if settings.pairs:
        return labelled_pairs.listed_pairs(settings.pairs, queries, searched)
    if settings.labels_csv:
        return labelled_pairs.labelled_pairs(settings.labels_csv, queries, searched)
    return labelled_pairs.task_pairs(settings.ground_truth, queries, searched)


def _geometric(
    settings: CalibrateConfig,
    verification: VerifyConfig,
    queries: DescriptorSet,
    searched: DescriptorSet,
    sets: dict[str, LocalFeatureSet],
) -> tuple[dict, Pairs | None]:
    """Returns the fitted weight and, with --min_inliers, pairs of which those with fewer pass none.

    These are pairs of the queries that the weight was fitted on, which were verified for it.
    """
    if settings.labels_csv:
        task = labelled_pairs.labelled_task(settings.labels_csv, queries, searched)
    else:
        task = load_ground_truth(settings.ground_truth)
    chosen, least = settings.fitting(), settings.min_inliers
    fitted, task, counts = geometric_weight.fit_sets(
        task, queries, searched, chosen, sets, verification
    )
    if not least:
        return fitted, None
    if settings.labels_csv and queries.ids is searched.ids:
        task = labelled_pairs.without_queries(task, earlier=True)
    pairs = labelled_pairs.pairs_of(task, queries, searched, counts.reaching(least))
    return fitted | {"min_inliers": least}, pairs


def calibrate(settings: CalibrateConfig, verification: VerifyConfig = DEFAULT) -> dict:
    """Fits a threshold: labelled pairs and their descriptors in, calibration.json out.

    With --index, the threshold is stored there too, and queries to it are answered with "match" or
    "no match". For an approximate index the threshold is fitted on the scores of that index. With
    local features, the weight of geometric verification is fitted and stored with it, and
    `dolg index query --rerank=geometric` takes it. With --min_inliers, a match needs so many too.

    Returns:
      The contents of calibration.json, see `fit` and, for "geometric", `geometric_weight.fit`.

    Raises:
      InputError: when no threshold reaches the precision (nothing is written then), a photo has no
        descriptor, descriptors were made in different ways, or the index was changed meanwhile.
    """
    files.check_output(settings.output, overwrite=True)
    index = Index.open(settings.index) if settings.index else None
    queries, searched = _read_sets(settings, index)
    sets = _local_sets(settings, verification, index, queries.ids is searched.ids)
    pairs = _pairs(settings, queries, searched)
    source = settings.pairs or settings.labels_csv or settings.ground_truth
    try:
        # The threshold first, where nothing keeps it from failing before the slow part.
        fitted = {} if settings.min_inliers else fit(pairs, settings.precision)
        if sets:
            geometric, verified = _geometric(settings, verification, queries, searched, sets)
            fitted = fitted or fit(verified, settings.precision)
            fitted["geometric"] = geometric
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    made = {key: searched.meta.get(key) for key in directory.SAME_SPACE}
    fitted = {"format_version": FORMAT_VERSION, **fitted, **made, "source": source}
    files.write_json(settings.output, fitted)
    _say(fitted)
    if index is not None:
        kept = ("threshold", "precision", "recall", "false_positive_rate", "prior", "pairs")
        calibration = {key: fitted[key] for key in (*kept, "geometric") if key in fitted}
        directory.set_calibration(settings.index, calibration, index.meta)
        log.info("%s: the threshold is stored", settings.index)
    return fitted
