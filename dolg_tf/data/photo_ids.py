"""Ids of photos: the same in lists, records, ground truths and descriptor sets."""

import posixpath
import unicodedata
from collections.abc import Container

from dolg_tf.stage.config import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")  # in upper or lower case; any other ending belongs to the id


def split_suffix(name: str) -> tuple[str, str]:
    """Returns (name without the suffix of a photo file, that suffix or "").

    A suffix behind another one stays: `tower.jpg.jpg` without it would look like a photo's name,
    and lose the other one at the next reader's.
    """
    stem, suffix = posixpath.splitext(name)
    if suffix.lower() in SUFFIXES and not stem.lower().endswith(SUFFIXES):
        return stem, suffix
    return name, ""


def id_of(name: str) -> str:
    """Returns the id of a photo from its path in a list, with or without suffix.

    An id is its own id. Photos of one folder that would share it keep their suffixes, see
    `photo_folders`.
    """
    return split_suffix(posixpath.normpath(name))[0]


def id_among(name: str, ids: Container[str]) -> str:
    """Returns the id of a photo from its path in a list, if it may be one of known ids.

    The name with its suffix comes first: photos that share a name but for it keep it in their ids.
    """
    exact = posixpath.normpath(name)
    return exact if exact in ids else id_of(exact)


def of_sfm(cid: object) -> str:
    """Returns the path, below its folder `ims`, of a photo of retrieval-SfM-120k.

    Args:
      cid: its id there, letters and digits.

    Raises:
      InputError: when it is none.
    """
    if not isinstance(cid, str) or len(cid) < 6 or not cid.isalnum():
        raise InputError(f"cid {cid!r:.60} is not letters and digits, six or more")
    return f"{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}"


def fault_of(id_: str) -> str:
    """Returns why an id cannot be a line of a text file, "" if it can."""
    if id_.isprintable() and id_.strip() == id_ and id_:
        return ""
    kinds = {unicodedata.category(letter) for letter in id_}
    if "Cs" in kinds:  # Python decodes bytes of a file name that are not UTF-8 to surrogates
        return "its name is not UTF-8"
    if kinds & {"Cc", "Zl", "Zp"}:
        return "its name has a line break or another control character"
    return "" if id_.strip() == id_ and id_ else "its name has a blank at an end"


def check_name(name: str, where) -> None:
    """Makes sure that a photo has only one id: its name leads straight down from the root.

    Args:
      name: the path of a photo, as it is in the list.
      where: the place in the list, for errors.

    Raises:
      InputError: when the name is absolute, contains "..", or does not end in a file.
    """
    parts = name.split("/")
    if parts[0] == "" or ".." in parts or parts[-1] in ("", "."):
        raise InputError(
            f"{where}: {name!r} cannot name a photo; give its path relative to the folder of the "
            "photos, without '..'"
        )
