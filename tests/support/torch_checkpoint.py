"""A file that torch.save would write of a state dict under `state_dict`, with values beside it."""

import pickle
import zipfile

from dolg_tf.weights.files.torch import write_torch

_FIRST_KEY = b"X\x0b\0\0\0model_state"  # the one key of what `write_torch` writes


def write_checkpoint(path, arrays, **beside):
    """Writes arrays by name, and plain values by name."""
    write_torch(path, arrays)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    head, tail = entries["archive/data.pkl"].split(_FIRST_KEY, 1)

    def plain(value):
        return pickle.dumps(value, 2)[2:-1]  # without protocol and stop

    others = b"".join(plain(name) + plain(value) + b"s" for name, value in beside.items())
    entries["archive/data.pkl"] = head + plain("state_dict") + tail[:-1] + others + b"."
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path
