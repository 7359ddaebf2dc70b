"""One line per picture, for notebooks: maps of a photo, why two photos match, what an index finds.

In a notebook, `%matplotlib inline` makes a cell show the Figure that its last line returns.
"""

import pathlib

from dolg_tf.apps.pictures import match, ranked_list
from dolg_tf.apps.pictures.maps import MAPS
from dolg_tf.apps.pictures.ranked_list import RankedPhoto, RankedRow
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel, load_model
from dolg_tf.retrieval.extract.photos import Photo, list_named
from dolg_tf.retrieval.index.directory import SAME_MODEL, Index
from dolg_tf.retrieval.meta import photo_roots
from dolg_tf.stage import files

_SHOWN = Preparation(1024)  # longest side, in pixels, of a photo for the network
_FOUND = Preparation(320)  # the same of found photos


def show_maps(model: LoadedModel | files.Path, photo: files.Path):
    """Draws what the local branch of a network saw in a photo, shrunk to 1024 pixels if larger.

    Args:
      model: a SavedModel of mode `serving`, or its directory, which takes longer.
      photo: its file.

    Returns:
      A matplotlib Figure, see `ranked_list.maps_overlay`.

    Raises:
      InputError: when the photo cannot be read, or the network has no local branch.
    """
    image = read_photo(photo, _SHOWN)
    maps = _loaded(model).maps(image)
    return ranked_list.maps_overlay(image, {MAPS[name]: maps[name] for name in MAPS})


def show_match(model: LoadedModel | files.Path, a: files.Path, b: files.Path):
    """Draws why two photos match, each shrunk to 1024 pixels if larger.

    Args:
      model: a SavedModel, or its directory, which takes longer.
      a, b: files of the photos.

    Returns:
      A matplotlib Figure, see `match.draw`.

    Raises:
      InputError: when a photo cannot be read or the model gives no local features.
    """
    photos = [read_photo(path, _SHOWN) for path in (a, b)]
    found = match.compare(_loaded(model), (a, b), _SHOWN.max_side)
    return match.draw(photos, found, [pathlib.Path(path).name for path in (a, b)])


def show_search(
    index: Index | files.Path,
    model: LoadedModel | files.Path,
    photo: files.Path,
    k: int = 8,
    image_root: files.Path = "",
):
    """Draws the photos of an index that are nearest to a photo.

    Args:
      index: an index, or its directory.
      model: that described the photos of the index; or its directory, which takes longer.
      photo: its file; it is described as those of the index were.
      k: number of photos.
      image_root: folder of the photos of the index; empty: where they were described.

    Returns:
      A matplotlib Figure, see `ranked_list.ranked_list`.

    Raises:
      InputError: when the index belongs to another model, or a photo cannot be read.
    """
    model = _loaded(model)
    index = index if isinstance(index, Index) else Index.open(index)
    scales = tuple(index.meta["scales"] or model.about.scales)
    about = {key: getattr(model.about, key) for key in SAME_MODEL}
    index.check_making(str(model.path), about | {"scales": list(scales)})
    image = read_photo(photo, Preparation.of(index.meta))
    scores, ranks = (row[0] for row in index.search(model.describe(image[None], scales), k))
    there = ranks >= 0
    photos = _photos([index.ids[rank] for rank in ranks[there]], index, image_root)
    found = [
        RankedPhoto(read_photo(one, _FOUND), "unknown", float(score))
        for one, score in zip(photos, scores[there], strict=True)
    ]
    return ranked_list.ranked_list([RankedRow(image, found)])


def _loaded(model: LoadedModel | files.Path) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else load_model(model)


def _photos(ids: list[str], index: Index, image_root: files.Path) -> tuple[Photo, ...]:
    """Returns the photos of an index by their ids, whatever their suffixes."""
    root = photo_roots(index.meta, image_root)
    return list_named(ids, root, index.path, upright=index.meta["upright"]).photos
