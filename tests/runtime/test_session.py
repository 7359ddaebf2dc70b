"""The C++ loader: arrays in and out, refusals, and models that only Python's loader accepts."""

import concurrent.futures
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.runtime import session
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.signatures import Signature, Tensor, read_signatures
from dolg_tf.stage.config import InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    class Toy(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(2.0)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, "text"),
                tf.TensorSpec([None, None], tf.float32, "x"),
            ]
        )
        def call(self, text, x):
            joined = tf.strings.join([text, "!"])
            return {"joined": joined, "y": x * self.factor, "n": tf.size(x)}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "size")])
        def zeros(self, size):
            return {"sum": tf.reduce_sum(tf.fill([size], tf.cast(size, tf.float32)))}

        @tf.function(input_signature=[])
        def half(self):
            return {"half": tf.cast(self.factor, tf.bfloat16)}

    module, path = Toy(), str(tmp_path_factory.mktemp("toy"))
    signatures = {"toy": module.call, "zeros": module.zeros, "half": module.half}
    tf.saved_model.save(module, path, signatures=signatures)
    return path


def test_arrays_and_strings_go_in_and_come_out(toy):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with CppSession(toy) as session:
        assert set(session.signatures) == {"toy", "zeros", "half"}
        # TensorFlow's string holds short ones inside, long ones outside; zeros do not end them.
        for text in ([b"a\0b\0", b"x" * 1000], [], np.array([b"ab"], object)):
            found = session.run("toy", {"text": text, "x": x.T})
            np.testing.assert_array_equal(found["y"], 2 * x.T)
            assert found["n"].shape == () and found["n"] == 6 and found["n"].dtype == np.int32
            assert found["joined"].tolist() == [value + b"!" for value in text]
        empty = session.run("toy", {"text": [], "x": np.zeros((0, 3), np.float32)})
        assert empty["y"].shape == (0, 3)


def test_a_path_that_is_not_utf_8(toy, tmp_path):
    path = tmp_path / "\udcff"
    path.symlink_to(toy)
    with CppSession(path) as session:
        assert session.run("zeros", {"size": np.int64(3)}) == {"sum": 9}


def test_wrong_inputs_are_refused(toy):
    x = np.ones((1, 1), np.float32)
    with CppSession(toy) as session:
        with pytest.raises(RuntimeError, match="must feed a value"):
            session.run("toy", {"x": x})
        with pytest.raises(TypeError, match="x is float64, but the signature takes float32"):
            session.run("toy", {"text": [b""], "x": np.ones((1, 1))})
        with pytest.raises(KeyError, match=r"z: toy takes \['text', 'x'\]"):
            session.run("toy", {"text": [b""], "z": x})
        with pytest.raises(KeyError, match="other"):
            session.run("other", {})
        with pytest.raises(TypeError, match="half has TensorFlow's dtype 14"):
            session.run("half", {})


def test_too_little_memory_is_a_memory_error(toy):
    with CppSession(toy) as session:
        assert session.run("zeros", {"size": np.int64(3)}) == {"sum": 9}
        with pytest.raises(MemoryError, match="OOM"):
            session.run("zeros", {"size": np.int64(2**50)})


def test_a_path_without_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb"):
        CppSession(tmp_path)


def test_several_threads_may_run_it(toy):
    def run(i):
        x = np.full((50, i + 1), i, np.float32)
        found = session.run("toy", {"text": [b"%d" % i] * i, "x": x})
        return found["joined"].tolist() == [b"%d!" % i] * i and (found["y"] == 2 * x).all()

    with CppSession(toy) as session, concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(200)))


def test_a_closed_session_refuses_to_run(toy):
    with CppSession(toy) as session:
        pass
    session.close()  # closing again does nothing
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.run("toy", {"text": [], "x": np.zeros((0, 3), np.float32)})


def test_a_session_that_nobody_holds_is_freed(toy):
    loaded = CppSession(toy)
    freed = loaded._freed
    del loaded
    assert not freed.alive


def test_without_the_library_it_says_so(toy, monkeypatch):
    session._library.cache_clear()
    monkeypatch.setattr(session.sys, "platform", "win32")
    with pytest.raises(InputError, match=r"no C library of TensorFlow in .*Linux and macOS"):
        CppSession(toy)


@pytest.mark.parametrize("as_attribute", [True, False])
def test_a_keras_model_as_attribute_loads_in_python_alone(tmp_path, as_attribute):
    """Why `saved_model.py` tracks the variables and not the network."""
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    module = tf.Module()
    if as_attribute:
        module.network = network
    else:
        module.weights = [variable.value for variable in network.variables]
    call = tf.function(network, input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"call": call})
    x = np.ones((1, 3), np.float32)
    model = tf.saved_model.load(str(tmp_path))
    (in_python,) = model.signatures["call"](x=tf.constant(x)).values()
    np.testing.assert_allclose(in_python, network(x), rtol=1e-5)

    def in_cpp():
        with CppSession(tmp_path) as session:
            return next(iter(session.run("call", {"x": x}).values()))

    if as_attribute:
        with pytest.raises(RuntimeError, match="Could not find variable"):
            in_cpp()
    else:
        np.testing.assert_allclose(in_cpp(), network(x), rtol=1e-5)


def test_signatures_are_read_without_loading(toy, tmp_path):
    size, total = Tensor("zeros_size:0", 9), Tensor("PartitionedCall_1:0", 1)
    found = read_signatures(toy)["zeros"]
    assert found == Signature(
        {"size": size}, {"sum": total._replace(name=found.outputs["sum"].name)}
    )
    assert read_signatures(toy)["half"].inputs == {}
    whole = pathlib.Path(toy, "saved_model.pb").read_bytes()
    file = tmp_path / "saved_model.pb"
    for data in (b"", b"\xff" * 9, whole[:-1], whole[: len(whole) // 2], b"\x12\x00"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"saved_model\.pb is damaged"):
            read_signatures(tmp_path)
    file.write_bytes(whole.replace(b"\x22\x05serve", b"\x22\x05train"))
    with pytest.raises(ValueError, match="no graph for serving"):
        read_signatures(tmp_path)
