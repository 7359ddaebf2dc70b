"""Ids of photos: the same in lists, records, ground truths and descriptor sets."""

import posixpath

from dolg_tf.stage.config import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")  # in upper or lower case; any other ending belongs to the id


def split_suffix(name: str) -> tuple[str, str]:
    """Returns (name without the suffix of a photo file, that suffix or "")."""
    stem, suffix = posixpath.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def id_of(name: str) -> str:
    """Returns the id of a photo from its path in a list, with or without suffix."""
    return split_suffix(posixpath.normpath(name))[0]


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
