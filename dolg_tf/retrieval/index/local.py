"""Local features for the photos of an index: opened, and held against what they are to fit."""

from collections.abc import Mapping, Sequence

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index.directory import Index, check_same_space
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.linking import Part
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# What a photo's descriptor and its local features must share: positions are in the photo's pixels.
_SAME_PHOTO = ("upright", "crop", "query_scale", "box_rounding")


def of_photos(
    path: files.Path, ids: Sequence[str], described: tuple[files.Path, Mapping], other_model: bool
) -> Part:
    """Opens the local features of photos.

    Args:
      path: of a local feature set.
      ids: of the photos.
      described: source and metadata of their descriptors.
      other_model: whether they may be of another model than the descriptors.

    Returns:
      The set, and its row of each photo.

    Raises:
      InputError: when photos are missing, or were described in another way.
    """
    found = feature_set.read(path)
    check_same_space([described, (path, found.meta)], _SAME_PHOTO)
    if not other_model:
        remedy = (
            "extract both in one go, by `dolg extract --local`, or say with --other_local_model "
            "that they are meant to be of another model"
        )
        check_same_space([described, (path, found.meta)], ["model_hash"], remedy)
    return found, found.rows_of(ids)


def of_added(index: Index, path: str, ids: Sequence[str]) -> Part | None:
    """Opens the local features of photos that are added to an index; None: it has none.

    Raises:
      InputError: when the index has local features and the photos have none, or the reverse, or
        theirs are of another kind.
    """
    if index.local is None:
        if path:
            raise InputError(
                f"--local={path}: {index.path} has no local features; build it with `dolg index "
                "build --local`, or leave --local out"
            )
        return None
    if not path:
        raise InputError(
            f"{index.path} has local features: give those of the added photos with --local"
        )
    found, rows = of_photos(path, ids, (index.path, index.meta), other_model=True)
    made = map(feature_set.how_made, (index.local, found))
    check_same_space(made, feature_set.SAME_SPACE)
    return found, rows


def of_queries(index: Index, path: str, queries: DescriptorSet) -> Part:
    """Opens the local features of queries, to be matched with those of an index.

    Raises:
      InputError: when queries are missing, or were described in another way.
    """
    found = feature_set.read(path)
    made = [feature_set.how_made(one) for one in (index.local, found)]
    check_same_space(made, feature_set.SAME_SPACE)
    return found, found.rows_of(queries.ids)
