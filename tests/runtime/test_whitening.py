import hashlib
import time
import zipfile

import numpy as np
import pytest

from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.stage.config import InputError

MEAN = np.random.default_rng(0).normal(size=16).astype(np.float32)
PROJECTION = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)


def test_round_trip(tmp_path, monkeypatch):
    path = tmp_path / "new" / "w.npz"
    write_whitening(path, MEAN.astype(np.float64), PROJECTION, "abc")
    stored = load_whitening(path, 16)
    np.testing.assert_array_equal(stored.mean, MEAN)
    np.testing.assert_array_equal(stored.projection, PROJECTION)
    assert stored.mean.dtype == stored.projection.dtype == np.float32
    assert stored.model_hash == "abc"
    assert stored.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # Written at another time it is the same file, so descriptors whitened with it are compatible.
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    write_whitening(tmp_path / "again.npz", MEAN, PROJECTION, "abc")
    assert load_whitening(tmp_path / "again.npz", 16).sha256 == stored.sha256


def test_damage_is_an_input_error(tmp_path):
    write_whitening(tmp_path / "w.npz", MEAN, PROJECTION, "abc")
    whole, rng = (tmp_path / "w.npz").read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(len(whole), size=(300, 2)):
        damaged = bytearray(whole)
        for byte in place:
            damaged[byte] ^= 255
        (tmp_path / "w.npz").write_bytes(damaged)
        try:
            load_whitening(tmp_path / "w.npz", 16)
        except InputError:
            refused += 1
    assert refused > 200


def test_the_model_hash_may_be_lacking(tmp_path):
    np.savez(tmp_path / "w.npz", mean=MEAN, projection=PROJECTION)
    assert load_whitening(tmp_path / "w.npz", 16).model_hash == ""


def test_what_is_not_whole_is_refused(tmp_path):
    write_whitening(tmp_path / "whole.npz", MEAN, PROJECTION, "abc")
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "part.npz").write_bytes(whole[:length])
        with pytest.raises(InputError, match="with the arrays mean and projection"):
            load_whitening(tmp_path / "part.npz", 16)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(16)}, "no .npz with the arrays mean and projection"),
        ({"mean": np.zeros(8), "projection": np.eye(8)}, r"mean \(8,\) and projection \(8, 8\)"),
        ({"mean": np.zeros(16), "projection": np.zeros((16, 17))}, r"\(16, K\) with K up to 16"),
        ({"mean": np.zeros(16), "projection": np.zeros((16, 0))}, "do not fit"),
        ({"mean": np.full(16, np.nan), "projection": np.eye(16)}, "a NaN or an infinity"),
        ({"mean": np.array([None] * 16), "projection": np.eye(16)}, "no .npz .*allow_pickle"),
        ({"mean": np.zeros(16), "projection": np.eye(16) * 1j}, "is of complex128, not of real"),
        ({"mean": np.zeros(16), "projection": np.full((16, 16), "x")}, "is of <U1, not of real"),
        ({"mean": np.full(16, 1e300), "projection": np.eye(16)}, "a NaN or an infinity"),
        ({"mean": np.zeros(16), "projection": np.zeros((99, 99))}, "78536 bytes, 16 x 16 is the"),
    ],
)
def test_bad_whitening_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "whitening.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_whitening(tmp_path / "whitening.npz", 16)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("mean")
    np.save(tmp_path / "mean.npy", np.zeros(16))
    for name in ("none.npz", "text.npz", "mean.npy"):
        with pytest.raises(InputError, match="with the arrays mean and projection"):
            load_whitening(tmp_path / name, 16)
    with pytest.raises(InputError, match=r"projection \(it is a single array\)"):
        load_whitening(tmp_path / "mean.npy", 16)


def test_a_header_that_promises_terabytes_is_refused(tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("mean.npy", head + bytes(64))
        archive.writestr("projection.npy", head + bytes(64))
    with pytest.raises(InputError, match=r"no \.npz with the arrays mean and projection"):
        load_whitening(tmp_path / "w.npz", 16)
