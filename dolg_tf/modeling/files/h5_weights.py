"""Safe reading of `.weights.h5` files from any source: completely, or not at all.

HDF5 lets a file point into other files, and lets a small file declare an enormous array. Keras'
own reader checks only some of this, skips arrays that it does not need, and accepts NaN.
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
      network: built; some of its variables may already be filled when this raises.
      file: as `network.save_weights` writes it, in the same precision.

    Raises:
      InputError: if the file does not exist, is not HDF5, does not hold exactly the network's
        arrays, points outside itself, or holds NaN or infinity.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        stored = _plain_arrays(file)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{file} is damaged, or not an HDF5 file of weights: {error}") from error
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
    for arrays, side in ((stored - needed, "more"), (needed - stored, "fewer")):
        if arrays:
            (shape, dtype), number = next(iter(arrays.items()))
            raise InputError(
                f"{file} does not fit the network: it holds {number} {side} of shape {shape}, "
                f"{dtype} ({stored.total()} arrays for {needed.total()} variables)"
            )


def check_finite(network: keras.Model, source: files.Path) -> None:
    """Checks that no variable holds NaN or infinity.

    Raises:
      InputError: naming the first variable that does.
    """
    for variable in network.variables:
        if not np.isfinite(variable.numpy()).all():
            raise InputError(
                f"{source}: {variable.path} holds NaN or infinity, so its descriptors would be "
                "useless; take another checkpoint"
            )


def _plain_arrays(file: pathlib.Path) -> Counter:
    """Counts the arrays of each (shape, dtype) in the file, without reading them.

    Raises:
      InputError: if one of them is not plainly stored in this file.
    """
    arrays, names = Counter(), []
    with h5py.File(file, "r") as h5:
        # Only collect here: h5py loses an error that is raised during the visit.
        h5.visit_links(names.append)
        for name in names:
            if not isinstance(h5.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{file}: {name} is a link; weights must be in the file itself")
            item = h5[name]
            if not isinstance(item, h5py.Dataset):
                continue
            # Chunks may be compressed, and inflate to far more than their shape suggests.
            if item.is_virtual or item.external or item.chunks:
                raise InputError(
                    f"{file}: {name} is virtual, external or chunked; weights must be in the file "
                    "itself, in one piece, as network.save_weights writes them"
                )
            arrays[item.shape, item.dtype.name] += 1
    return arrays
