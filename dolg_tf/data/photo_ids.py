"""What a photo is called: in lists, records, ground truths and descriptor sets alike."""

import posixpath

from dolg_tf.stage.config import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")  # in any case; what else ends a name belongs to the id


def split_suffix(name: str) -> tuple[str, str]:
    """Returns (name without the suffix of a photo, that suffix or "")."""
    stem, suffix = posixpath.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def id_of(name: str) -> str:
    """Returns the id of a photo that a list names by its path, with or without suffix."""
    return split_suffix(posixpath.normpath(name))[0]


def check_name(name: str, where) -> None:
    """Makes sure that a photo has no second id: its name leads straight down from the root.

    Args:
      name: the path of a photo, as a list has it.
      where: the place in the list, for the error.

    Raises:
      InputError: when the name is absolute, has ".." in it, or ends in no file.
    """
    parts = name.split("/")
    if parts[0] == "" or ".." in parts or parts[-1] in ("", "."):
        raise InputError(
            f"{where}: {name!r} is no name of a photo; give its path relative to the folder of the "
            "photos, without '..'"
        )
