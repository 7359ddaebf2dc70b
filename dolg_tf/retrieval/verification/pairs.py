"""Two photos' local features -> how many of them agree on one view, by settings from flags."""

import dataclasses
import math

import numpy as np

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification import affine, homography
from dolg_tf.retrieval.verification.affine import Ransac
from dolg_tf.retrieval.verification.matching import RULES, Matches, match
from dolg_tf.stage.config import InputError, at_least, option

# name: (what it is, how it is found)
GEOMETRIES = {
    "affine": ("an affine map, as in DELG", affine.verify),
    "homography": ("a homography, by OpenCV's MAGSAC, which is faster", homography.verify),
}


AUTO = "auto"
_DELG = {"match": "nearest", "max_residual": "20"}
_OURS = {"match": "mutual", "max_residual": "30"}


def _listed(words: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in words.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """How the local features of two photos are matched, and what they must agree on.

    "auto" is for DELG's order what its perform_retrieval takes, so that published scores compare.
    For anything else it is what gave the best rankings of large photos here, see docs/quality.md.
    """

    match: str = option(
        f"which local features are paired. {_listed(RULES)}; auto: mutual, or for DELG's order "
        "nearest",
        AUTO,
        choices=(AUTO, *RULES),
    )
    match_distance: float = option(
        "pairs of local features are closer than this (1 is a cosine of 0.5); with --match=ratio "
        "the share of the distance to the second nearest",
        1.0,
    )
    geometry: str = option(
        "what the pairs must agree on. "
        + _listed({name: words for name, (words, _) in GEOMETRIES.items()}),
        "affine",
        choices=tuple(GEOMETRIES),
    )
    max_residual: str = option(
        "how near a pair must be to where the others put it: pixels of the query (20), or a share "
        "of its longest side (2%); auto: 30, for DELG's order 20",
        AUTO,
    )
    ransac_trials: int = option("at most, guesses of what pairs agree on", 1000)
    plausible: bool = option(
        "refuse pairs on a line, and maps that mirror or that scale tenfold, which DELG counts",
        False,
    )
    ransac_seed: int = option("seed of the guesses", 0)

    def __post_init__(self):
        at_least(self, ransac_trials=1, ransac_seed=0)
        if self.ransac_seed >= 2**31:
            raise InputError(f"--ransac_seed={self.ransac_seed} must be below {2**31}")
        if not 0 < self.match_distance < math.inf:
            raise InputError(f"--match_distance={self.match_distance} must be above 0")
        self.residual_of((1, 1))
        if self.geometry == "homography":
            homography.need()

    def resolved(self, *, delg: bool = False) -> "VerifyConfig":
        """Returns the settings without "auto".

        Args:
          delg: whether photos are put into DELG's order.
        """
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(VerifyConfig)
        }
        usual = _DELG if delg else _OURS
        return VerifyConfig(**{k: usual[k] if x == AUTO else x for k, x in values.items()})

    def residual_of(self, size: tuple[int, int]) -> float:
        """Returns the bound of the residual in pixels, for a query of a height and width.

        Raises:
          InputError: when --max_residual is neither pixels nor a share.
        """
        text = _OURS["max_residual"] if self.max_residual == AUTO else self.max_residual
        number, percent, rest = text.strip().partition("%")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if rest or not 0 < value < math.inf:
            raise InputError(
                f"--max_residual={self.max_residual} is neither a number of pixels (20) nor a "
                "share of the query's longest side (2%)"
            )
        return value * max(size) / 100 if percent else value


DEFAULT = VerifyConfig()


@dataclasses.dataclass(frozen=True)
class Verification:
    """What the local features of a query and an index photo agree on.

    Attributes:
      matches: pairs of features that look alike.
      inliers: bool (M,), the matches that the map explains.
      map: float64 (2, 3) affine or (3, 3) projective, from a position (y, x, 1) in the index photo
        to one in the query; None: there is none that explains enough matches.
    """

    matches: Matches
    inliers: np.ndarray
    map: np.ndarray | None

    @property
    def count(self) -> int:
        """How many matches are inliers."""
        return int(self.inliers.sum())


class Verifier:
    """Verifies pairs of photos.

    Args:
      settings: of matching and geometry; "auto" is not DELG's.
    """

    def __init__(self, settings: VerifyConfig):
        self.settings = settings = settings.resolved()
        _, self._verify = GEOMETRIES[settings.geometry]

    def verify(self, query: LocalFeatures, index: LocalFeatures) -> Verification:
        """Returns what the features of a query and an index photo agree on.

        The same features and settings give the same answer each time.

        Raises:
          InputError: when the descriptors differ in length.
        """
        settings = self.settings
        matches = match(
            query.directions,
            index.directions,
            max_distance=settings.match_distance,
            rule=settings.match,
        )
        ransac = Ransac(
            max_residual=settings.residual_of(query.size),
            trials=settings.ransac_trials,
            plausible=settings.plausible,
            seed=settings.ransac_seed,
        )
        found = self._verify(query.positions[matches.query], index.positions[matches.index], ransac)
        return Verification(matches, found.inliers, found.map)
