"""Weights files from any source: one that fits is read, all others are refused in one sentence."""

import h5py
import keras
import numpy as np
import pytest

from dolg_tf.modeling.files.h5_weights import load_weights
from dolg_tf.modeling.layers import GeM, MultiAtrous
from dolg_tf.stage.config import InputError

KERNEL = (1, 1, 3, 4)


def _network():
    image = keras.Input((None, None, 3))
    return keras.Model(image, GeM(name="gem")(MultiAtrous((1, 2), 8, name="atrous")(image)))


@pytest.fixture(scope="module")
def network():
    return _network()


@pytest.fixture
def file(network, tmp_path):
    network.save_weights(tmp_path / "good.weights.h5")
    return tmp_path / "good.weights.h5"


def _replace(file, make):
    """Puts `make(h5, name, values)` in place of one kernel of the file."""
    found = []
    with h5py.File(file, "a") as h5:
        h5.visititems(lambda name, item: found.append((name, item)))
        name, values = next((n, x[()]) for n, x in found if getattr(x, "shape", None) == KERNEL)
        del h5[name]
        make(h5, name, values)


def test_every_array_comes_back(network, file):
    other = _network()
    load_weights(other, file)
    for ours, theirs in zip(other.weights, network.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _elsewhere(file):
    """Writes a kernel into another file beside it, as HDF5 and as plain bytes."""
    with h5py.File(file.parent / "secret.h5", "w") as h5:
        h5["kernel"] = np.ones(KERNEL, np.float32)
    np.ones(KERNEL, np.float32).tofile(file.parent / "secret.bin")


def _external_link(h5, name, _):
    h5[name] = h5py.ExternalLink("secret.h5", "kernel")


def _soft_link(h5, name, values):
    h5["aside"] = values
    h5[name] = h5py.SoftLink("/aside")


def _virtual(h5, name, _):
    layout = h5py.VirtualLayout(KERNEL, np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "kernel", KERNEL)
    h5.create_virtual_dataset(name, layout)


def _external_bytes(h5, name, _):
    h5.create_dataset(name, KERNEL, np.float32, external=[("secret.bin", 0, 48)])


def _compressed(h5, name, values):
    h5.create_dataset(name, data=values, compression="gzip")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_external_link, "is a link; weights must be in the file itself"),
        (_soft_link, "is a link"),
        (_virtual, "is virtual, external or chunked"),
        (_external_bytes, "is virtual, external or chunked"),
        (_compressed, "is virtual, external or chunked"),
    ],
)
def test_weights_outside_the_file_are_refused(network, file, make, message):
    _elsewhere(file)
    _replace(file, make)
    with pytest.raises(InputError, match=rf"good\.weights\.h5: \S+ {message}"):
        load_weights(network, file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # 4 TiB, of which not one byte is in the file.
        (lambda h5, name, _: h5.create_dataset(name, (2**40,), np.float32), "1 more of shape"),
        (lambda h5, name, x: h5.create_dataset(name, data=x.astype(float)), "1 more .* float64"),
        (lambda h5, name, x: h5.create_dataset(name, data=x.swapaxes(2, 3)), "1 more of shape"),
        (lambda h5, name, _: None, r"1 fewer .* float32 \(10 arrays for 11 variables"),
        (lambda h5, name, x: h5.update({name: x, "extra": x}), r"1 more .* \(12 arrays for 11"),
        (lambda h5, name, x: h5.update({"moved": x}), "1 objects could not be loaded"),
    ],
)
def test_other_arrays_are_refused(network, file, make, message):
    _replace(file, make)
    with pytest.raises(InputError, match=f"does not fit the network.*{message}"):
        load_weights(network, file)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(network, file, number):
    _replace(file, lambda h5, name, x: h5.update({name: np.where(x == x.max(), number, x)}))
    with pytest.raises(InputError, match=r"good\.weights\.h5: atrous/\w+/kernel holds NaN or inf"):
        load_weights(_network(), file)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 182000000\n"


@pytest.mark.parametrize("content", [b"", b"weights", POINTER, b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_a_file_other_than_hdf5_is_refused(network, tmp_path, content):
    path = tmp_path / "odd.weights.h5"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged, or not an HDF5 file of weights"):
        load_weights(network, path)
    with pytest.raises(InputError, match="no such file"):
        load_weights(network, tmp_path / "none.weights.h5")


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_damage_is_refused_or_harmless(network, file):
    """Damaged numbers look like any others; all other damage is an InputError."""
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    other = _network()
    for trial in range(30):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=4):
            data[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(data[: rng.integers(len(data))] if trial % 10 == 0 else data)
        try:
            load_weights(other, file)
        except InputError:
            refused += 1
    assert 5 < refused < 30
