"""Which descriptors may be compared with which."""

from collections.abc import Iterable, Sequence

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# What two descriptors must share for their product to mean anything.
SAME_SPACE = ("model_hash", "scales", "whitening")


def about(found: DescriptorSet) -> tuple[str, dict]:
    """Returns the source of a set, and what `check` compares: its meta data and its width."""
    return found.source, {**found.meta, "width": found.descriptors.shape[1]}


def check(
    made: Iterable[tuple[files.Path, dict]],
    keys: Sequence[str] = (*SAME_SPACE, "width"),
    remedy: str = "extract all with one model and its settings",
) -> None:
    """Makes sure that descriptors were made in one way.

    Args:
      made: (source, meta data) of each set or index; what lacks a key, as a bare `.npy` does, is
        not known and not compared.
      keys: of the meta data that must be equal; "width" is the numbers a photo.
      remedy: what the error asks for.

    Raises:
      InputError: naming the first two that differ.
    """
    made = list(made)
    for key in keys:
        told = [(source, meta[key]) for source, meta in made if key in meta]
        for source, value in told[1:]:
            first, expected = told[0]
            if value != expected:
                raise InputError(
                    f"{source} has {key} {value!r:.80}, {first} has {expected!r:.80}: {remedy}"
                )
