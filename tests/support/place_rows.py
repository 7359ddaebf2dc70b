"""Descriptors of photos of places, drawn for tests of what needs no labels."""

import numpy as np


def photos_of(sizes, seed=0, shared=0.75, size=128):
    """Returns unit rows (N, size) and places (N,).

    Args:
      sizes: photos of each place.
      seed: of places and photos.
      shared: share of a photo's variance that its place has; the rest varies in 24 directions.
      size: numbers of a descriptor.
    """
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(len(sizes)), sizes)
    common = rng.standard_normal(size) * 2
    centres = rng.standard_normal((len(sizes), size))
    within = rng.standard_normal((24, size)) / np.sqrt(24)
    noise = rng.standard_normal((len(places), 24)) @ within
    rows = common + np.sqrt(shared) * centres[places] + np.sqrt(1 - shared) * noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), places
