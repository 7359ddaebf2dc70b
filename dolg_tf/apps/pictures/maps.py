"""Names of the maps of an exported network, and their description in words."""

from collections.abc import Mapping

import numpy as np

MAPS = {
    "attention": "attention",
    "orthogonal_norm": "norm of the orthogonal part",
    "explained_energy": "share that the global feature explains",
}
"""Outputs of the signature `maps`: the label of each."""


def describe_maps(query: str, maps: Mapping[str, np.ndarray]) -> str:
    """Returns in words what `dolg_tf.apps.pictures.ranked_list.maps_overlay` draws of these maps.

    Args:
      query: name of the photo.
      maps: see `dolg_tf.retrieval.extract.model.LoadedModel.maps`.
    """
    attention = maps["attention"]
    height, width = attention.shape
    row, column = np.unravel_index(np.argmax(attention), attention.shape)
    rows, columns = ("top", "middle", "bottom"), ("left", "centre", "right")
    place = f"{rows[int(3 * (row + 0.5) // height)]} {columns[int(3 * (column + 0.5) // width)]}"
    norm, energy = maps["orthogonal_norm"], maps["explained_energy"]
    return (
        f"{query}: the photo and three maps of {height} x {width} cells over it. Attention from "
        f"{attention.min():.2g} to {attention.max():.2g}, strongest at the {place}; norm of the "
        f"orthogonal part from {norm.min():.2g} to {norm.max():.2g}; the global feature explains "
        f"{100 * energy.min():.0f} to {100 * energy.max():.0f} % of the energy, "
        f"{100 * energy.mean():.0f} % on average."
    )
