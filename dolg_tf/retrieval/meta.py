"""What `meta.json` of a descriptor set or an index may say, key by key."""

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dolg_tf.stage.config import InputError

DTYPES = ("float32", "float16")  # in which rows are stored
# Of descriptor sets and indexes. In version 2 ids keep their suffixes, and begin with the label of
# a folder of `image_roots`, unless there is only one, whose label is empty.
FORMAT_VERSIONS = (1, 2)
# Version 3 is that of an index with local features, which commands of older releases would lose.
INDEX_VERSIONS = (*FORMAT_VERSIONS, 3)
_SIDE_LIMIT = 1 << 31


def _none_or(kind: type) -> Callable[[Any], bool]:
    return lambda value: value is None or type(value) is kind


def _is_scales(value) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(type(scale) in (int, float) and 0 < scale < math.inf for scale in value)
    )


def _is_side(value) -> bool:
    return value is None or (type(value) is int and 0 <= value < _SIDE_LIMIT)


def _is_whitening(value) -> bool:
    return value is None or isinstance(value, str | dict)


def _are_roots(value) -> bool:
    return isinstance(value, dict) and all(isinstance(root, str) for root in value.values())


def _is_bad(value) -> bool:
    return isinstance(value, list) and all(
        isinstance(photo, dict) and "id" in photo for photo in value
    )


# Sets from other tools do not know how they were made: None.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "image_root": (_none_or(str), "a folder"),
    "image_roots": (_are_roots, "folders by label"),
    "model_hash": (_none_or(str), "a string"),
    "scales": (_is_scales, "a list of positive numbers"),
    "crop": (_none_or(bool), "true or false"),
    "max_side": (_is_side, "a whole number of pixels"),
    "dtype": (lambda value: value in DTYPES, " or ".join(DTYPES)),
    "whitening": (_is_whitening, "a SHA-256"),
    "bad": (_is_bad, "a list of unreadable photos with their ids"),
    "upright": (_none_or(bool), "true or false"),
    "query_scale": (_none_or(str), "a string"),
    "box_rounding": (_none_or(str), "a string"),
}


def format_version(meta: Mapping) -> int:
    """Returns the version in which a set or index with this metadata is written."""
    if "local" in meta:
        return 3
    return 2 if "image_roots" in meta else 1


def photo_roots(meta: Mapping, image_root="") -> str | Mapping[str, str]:
    """Returns where the photos of a set or an index are: a folder, or in version 2 those by label.

    Args:
      meta: its metadata.
      image_root: the folder that was given instead; empty: none was.

    Raises:
      InputError: when a folder was given, but the photos are in several.
    """
    if "image_roots" not in meta:
        return image_root or meta["image_root"]
    if image_root and len(meta["image_roots"]) > 1:
        raise InputError(
            f"--image_root={image_root}: the photos are in {len(meta['image_roots'])} folders, "
            f"{', '.join(meta['image_roots'].values())}; leave it out"
        )
    return {"": image_root} if image_root else meta["image_roots"]


def of_one_folder(meta: Mapping, other: Mapping) -> bool:
    """Tells whether equal ids of two sets, or of a set and an index, mean the same photo."""
    if meta.get("image_root") is None:
        return meta.get("image_roots") == other.get("image_roots")
    return meta["image_root"] == other.get("image_root")


def whitened_after(meta: Mapping) -> str:
    """Returns the SHA-256 of the whitening that `dolg whiten apply` applied; "": none was.

    A whitening inside the model is not meant: that belongs to the model's hash.
    """
    return meta["whitening"] if isinstance(meta["whitening"], str) else ""


def with_defaults(meta: dict) -> dict:
    """Returns the metadata of a set or index with the keys that older releases did not write.

    `query_scale` and `box_rounding` are of photos cut to boxes alone.
    """
    added = {"upright": False}
    if meta.get("crop"):
        added |= {"query_scale": "crop", "box_rounding": "dolg"}
    return meta | {key: value for key, value in added.items() if key not in meta}


def check_meta(meta: Mapping, needed: Iterable[str], source: pathlib.Path, remedy: str) -> None:
    """Makes sure that metadata have all keys, and values of the right kind.

    Args:
      meta: the contents of `meta.json`.
      needed: keys that must be there.
      source: the file, for the error.
      remedy: the end of the error message.

    Raises:
      InputError: naming the first key that is missing, or whose value is of another kind.
    """
    for key in needed:
        if key not in meta:
            raise InputError(f"{source}: no {key!r}; {remedy}")
    for key, (fits, kind) in _RULES.items():
        if key in meta and not fits(meta[key]):
            raise InputError(f"{source}: {key} is {meta[key]!r:.60}, not {kind}; {remedy}")
