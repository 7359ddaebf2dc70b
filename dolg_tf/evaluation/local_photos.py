"""Local features of the photos that are scored, joined by id, for geometric verification."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dolg_tf.retrieval.index.directory import check_same_space
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.verification.pairs import DEFAULT, VerifyConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option, to_dict

LocalSet = files.Path | LocalFeatureSet
"""A local feature set: its path, or as it was read."""

_TOLD = ("model_hash", "kind", "dimensions", "reduction", "dtype", "threshold", "max_features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """The local features of queries and index."""

    query_local: str = option("local feature set of the queries, for --rerank=geometric", "")
    index_local: str = option("local feature set of the index, for --rerank=geometric", "")


def check_flags(settings: RerankConfig, verification: VerifyConfig, **sets: object) -> None:
    """Holds local feature sets and their settings against the re-ranking that takes them.

    Args:
      settings: the re-ranking.
      verification: how pairs are verified.
      sets: by flag; empty or None: not given.

    Raises:
      InputError: when the re-ranking lacks one of them, or takes none of what was given.
    """
    if settings.local:
        if missing := [name for name, found in sets.items() if not found]:
            raise InputError(
                f"--rerank={settings.rerank} needs --{missing[0]}, a local feature set; `dolg "
                "extract --local` writes one"
            )
        return
    usual = to_dict(DEFAULT)
    given = [name for name, found in sets.items() if found]
    given += [name for name, value in to_dict(verification).items() if value != usual[name]]
    if given:
        raise InputError(
            f"--{given[0]} is for geometric verification; omit it, or add geometric to "
            f"--rerank={settings.rerank}"
        )


class LocalPhotos:
    """Local features of photos by row, of one set or of several one behind the other.

    Args:
      parts: sets, and the rows of each that are taken, in their order.
    """

    def __init__(self, *parts: tuple[LocalFeatureSet, np.ndarray]):
        self._parts = parts
        self._ends = np.cumsum([len(rows) for _, rows in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> LocalFeatures:
        part = int(np.searchsorted(self._ends, row, side="right"))
        found, rows = self._parts[part]
        return found[int(rows[row - self._ends[part]])]


def read(found: LocalSet) -> LocalFeatureSet:
    """Returns the set, read from its path where it is one."""
    return found if isinstance(found, LocalFeatureSet) else feature_set.read(found)


def join(
    sets: dict[str, LocalFeatureSet], ids: dict[str, Sequence[str]], settings: VerifyConfig
) -> InlierCounts:
    """Joins local features with descriptors by id.

    Args:
      sets: "query", "index" and, where there are any, "distractor".
      ids: of the same, in the order of the descriptors' rows.
      settings: of matching and geometry.

    Raises:
      InputError: when sets are of different models, or a photo is missing in one.
    """
    check_same_space(
        map(feature_set.how_made, sets.values()),
        feature_set.SAME_SPACE,
        "extract all with one model, and keep their numbers alike (`--local_dtype`)",
    )
    parts = {name: (found, found.rows_of(ids[name])) for name, found in sets.items()}
    queries = parts.pop("query")
    return InlierCounts(LocalPhotos(queries), LocalPhotos(*parts.values()), settings)


def protocol(sets: dict[str, LocalFeatureSet], settings: VerifyConfig) -> dict:
    """Returns what a report says of a verification, plain JSON values."""
    told = {key: sets["query"].meta.get(key) for key in _TOLD}
    for key in ("scales", "max_side"):
        told |= {f"{name}_{key}": found.meta.get(key) for name, found in sets.items()}
    return to_dict(settings) | told


def remarks(sets: dict[str, LocalFeatureSet], model_hash: str | None, crop: str | None) -> list:
    """Returns what a reader must know before comparing scores of these sets with others.

    Args:
      sets: see `join`.
      model_hash: of the descriptors; None: not known.
      crop: "box" where the descriptors' queries were cut to their boxes; see `read_inputs`.
    """
    found, meta = [], sets["query"].meta
    if None not in (model_hash, meta.get("model_hash")) and meta["model_hash"] != model_hash:
        found.append("local features and descriptors are of different models")
    if crop == "box" and not meta.get("crop"):
        found.append("local features of the queries are of whole photos, not of their boxes")
    for key in ("scales", "max_side", "max_features"):
        if len({str(one.meta.get(key)) for one in sets.values()}) > 1:
            found.append(f"local features of queries and photos were extracted with other {key}")
    return found
