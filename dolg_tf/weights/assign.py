"""Named tensors of a file -> the variables of a network: all of them, or none."""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from dolg_tf.stage.config import InputError
from dolg_tf.weights.files.arrays import Tensor

# From PyTorch's layout to ours: convolutions [out, in, h, w], depthwise ones [channels, 1, h, w].
CONV, DEPTHWISE, SAME = (2, 3, 1, 0), (2, 3, 0, 1), None
COUNTER = "num_batches_tracked"  # of a PyTorch batch norm
# (name in the file, our variable, transposition from theirs to ours)
Entry = tuple[str, keras.Variable, tuple | None]


def norm_entries(prefix: str, layer: keras.layers.BatchNormalization) -> list[Entry]:
    """Returns the four tensors of a PyTorch batch norm."""
    return [
        (f"{prefix}.weight", layer.gamma, SAME),
        (f"{prefix}.bias", layer.beta, SAME),
        (f"{prefix}.running_mean", layer.moving_mean, SAME),
        (f"{prefix}.running_var", layer.moving_variance, SAME),
    ]


def fill(
    entries: Sequence[Entry],
    tensors: Mapping[str, np.ndarray | Tensor],
    ignored_because: Callable[[str], str],
) -> dict[str, str]:
    """Fills the variable of every entry. All names and shapes are compared before any is read.

    Args:
      entries: which tensor is which variable.
      tensors: arrays, or tensors of a file, by name.
      ignored_because: returns why a tensor without an entry is not needed; "" if it should be.

    Returns:
      {name of a tensor that was ignored: why}.

    Raises:
      InputError: naming the first tensor that is missing, left over, of another shape, not of
        floating-point numbers, or not finite.
    """
    used = {name for name, _, _ in entries}
    ignored = {name: ignored_because(name) for name in tensors if name not in used}
    unknown = [
        f"its {name} fits nothing in this network" for name, why in ignored.items() if not why
    ]
    for name, variable, axes in entries:
        if name not in tensors:
            raise InputError(
                "; ".join([f"it has no {name}, which {variable.path} needs", *unknown[:1]])
            )
        shape = tuple(variable.shape)
        needed = shape if axes is None else tuple(shape[i] for i in np.argsort(axes))
        if tuple(tensors[name].shape) != needed:
            raise InputError(
                f"its {name} has shape {tuple(tensors[name].shape)}, this network's {needed}"
            )
    if unknown:
        raise InputError(unknown[0])
    arrays = [checked(name, tensors[name]) for name, _, _ in entries]
    for (_, variable, axes), array in zip(entries, arrays, strict=True):
        variable.assign(array if axes is None else array.transpose(axes))
    return ignored


def state_of(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Returns the state dict of all entries, the reverse of `fill`.

    A batch norm's counter of training steps, which PyTorch stores and we do not, is 0.
    """
    state = {}
    for name, variable, axes in entries:
        array = keras.ops.convert_to_numpy(variable)
        state[name] = array if axes is None else array.transpose(np.argsort(axes))
        if name.endswith(".running_var"):
            state[name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return state


def checked(name: str, tensor: np.ndarray | Tensor) -> np.ndarray:
    """Returns a tensor as float32.

    Raises:
      InputError: when it holds anything but floating-point numbers that float32, or a variance,
        can be.
    """
    array = tensor.read() if isinstance(tensor, Tensor) else np.asarray(tensor)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"its {name} holds {array.dtype}; weights are floating-point numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        bad = array.size - np.count_nonzero(np.isfinite(array))
        raise InputError(f"{bad} of {array.size} values of its {name} are NaN or infinite")
    if name.endswith("running_var") and array.min(initial=0) < 0:
        raise InputError(f"its {name} holds a negative variance")
    return array
