"""Reads a `.weights.h5` file from anywhere: all of it and nothing else, or not at all.

HDF5 lets a file point into other files, and a small one declare an enormous array. Keras' own
reader checks some of this, passes over arrays that it has no use for, and takes NaN.
"""

import pathlib
from collections import Counter

import h5py
import keras
import numpy as np

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# What HDF5 and Keras raise on a damaged file.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


def load_weights(network: keras.Model, file: files.Path) -> None:
    """Fills every variable of the network.

    Args:
      network: built; a part of its variables may have been filled where this raises.
      file: as `network.save_weights` writes it, in the same precision.

    Raises:
      InputError: when there is no such file, it is none of HDF5, it has other arrays than the
        network has variables, it points out of itself, or a number is NaN or infinite.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        stored = _plain_arrays(file)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{file} is no HDF5 file of weights, or damaged: {error}") from error
    _compare_shapes(network, stored, file)
    try:
        network.load_weights(file)
    except _DAMAGE as error:
        raise InputError(f"{file} does not fit the network: {error}") from error
    check_finite(network, file)


def _compare_shapes(network: keras.Model, stored: Counter, file: pathlib.Path) -> None:
    needed = Counter(
        (tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for v in network.weights
    )
    for arrays, side in ((stored - needed, "more"), (needed - stored, "less")):
        if arrays:
            (shape, dtype), number = next(iter(arrays.items()))
            raise InputError(
                f"{file} does not fit the network: it holds {number} {side} of shape {shape}, "
                f"{dtype} ({stored.total()} arrays for {needed.total()} variables)"
            )


def check_finite(network: keras.Model, source: files.Path) -> None:
    """Holds every variable against NaN and infinity.

    Raises:
      InputError: naming the first variable that has one.
    """
    for variable in network.variables:
        if not np.isfinite(variable.numpy()).all():
            raise InputError(
                f"{source}: {variable.path} holds NaN or infinity; such a network describes no "
                "photo, take another checkpoint"
            )


def _plain_arrays(file: pathlib.Path) -> Counter:
    """Returns how many arrays of each (shape, dtype) the file holds, without reading them.

    Raises:
      InputError: when one of them is not plainly stored in this very file.
    """
    arrays, names = Counter(), []
    with h5py.File(file, "r") as h5:
        # It collects and does no more: h5py loses an error that is raised while it visits.
        h5.visit_links(names.append)
        for name in names:
            if not isinstance(h5.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{file}: {name} is a link; weights must lie in the file itself")
            item = h5[name]
            if not isinstance(item, h5py.Dataset):
                continue
            # Chunks may be compressed, and inflate to far more than their shape says.
            if item.is_virtual or item.external or item.chunks:
                raise InputError(
                    f"{file}: {name} is virtual, external or in chunks; weights must lie in the "
                    "file itself, in one piece, as network.save_weights writes them"
                )
            arrays[item.shape, item.dtype.name] += 1
    return arrays
