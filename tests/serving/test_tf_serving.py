"""An export as TF Serving uses it: the calls of docs/serving.md, and the warm-up requests.

There is no server binary to install: its protos are the real ones, and its session is the C++
loader's.
"""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from dolg_tf.data import images
from dolg_tf.runtime.session import CppSession
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.modes import serving
from dolg_tf.serving.saved_model import Inside
from dolg_tf.serving.server_files import BATCHING, WARMUP

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


SCALES = (0.7071, 1.0)


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """An export without its checks, which take most of its time."""
    path = tmp_path_factory.mktemp("dolg") / "1"
    config = ExportConfig(model_dir="m", output=str(path), scales=SCALES)
    serving.MODE.write(serving.functions(network, config, Inside()), path)
    serving.MODE.add_files(path, config)
    return path


@pytest.fixture(scope="module")
def session(exported):
    with CppSession(exported) as session:
        yield session


@pytest.fixture
def folder(tmp_path, monkeypatch, photos):
    """A working directory with the photos that the document names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.jpg").write_bytes(tf.io.encode_jpeg(photos(61, 83, 3)).numpy())
    (tmp_path / "second.png").write_bytes(tf.io.encode_png(photos(40, 36, 3)).numpy())
    return tmp_path


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )


def predict(session, request):
    """Answers a PredictRequest as the server does."""
    request = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    signature = request.model_spec.signature_name or "serving_default"
    inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    for name, array in session.run(signature, inputs).items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
    return response


def from_rest(session, body):
    """Returns the PredictRequest that the server makes of a REST body in columnar form."""
    body = json.loads(body)
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = body.get("signature_name", "")
    infos = session.signatures[body.get("signature_name", "serving_default")].inputs
    assert set(body["inputs"]) == set(infos)
    for name, value in body["inputs"].items():
        dtype = tf.as_dtype(infos[name].dtype)
        if dtype == tf.string:
            assert name.endswith("_bytes")
            value = [base64.b64decode(each["b64"], validate=True) for each in value]
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
    return request


def bodies(folder):
    """Runs the document's curl calls with a curl that prints the body instead of sending it."""
    fake = folder / "bin" / "curl"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor last; do :; done\n[ "$last" = @- ] && cat || echo "$last"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    return [
        subprocess.run(
            ["sh", "-c", block], env=environment, check=True, capture_output=True, text=True
        ).stdout
        for block in blocks("sh")
        if block.startswith("curl")
    ]


def test_rest_calls_of_the_document(session, folder, many_scales):
    # The first is one of mode search, whose input is the same.
    _, encoded, pixels, maps = (
        predict(session, from_rest(session, body)) for body in bodies(folder)
    )
    assert tf.make_ndarray(encoded.outputs["status"]).tolist() == [0, 0]
    scales = np.asarray(SCALES, np.float32)
    descriptors = tf.make_ndarray(encoded.outputs["descriptors"])
    for name, row in zip(("first.jpg", "second.png"), descriptors, strict=True):
        photo = images.decode(tf.constant((folder / name).read_bytes())).numpy()
        expected = session.run("images", {"images": photo[None], "scales": scales})
        np.testing.assert_allclose(row, expected["descriptors"][0], atol=1e-6)
    photo = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    (row,) = tf.make_ndarray(pixels.outputs["descriptors"])
    np.testing.assert_allclose(row, many_scales(photo, SCALES), atol=1e-5)
    assert set(maps.outputs) == {"attention", "orthogonal_norm", "explained_energy"}
    assert tf.make_ndarray(maps.outputs["attention"]).shape == (1, 1)


def test_grpc_call_of_the_document(session, folder, monkeypatch):
    class Stub:
        def __init__(self, channel):
            assert channel == "localhost:8500"

        def Predict(self, request, timeout):
            assert request.model_spec.name == "dolg"
            return predict(session, request)

    monkeypatch.setattr(grpc, "insecure_channel", lambda target: target)
    monkeypatch.setattr(prediction_service_pb2_grpc, "PredictionServiceStub", Stub)
    (code,) = blocks("python")
    found = {}
    exec(compile(code, str(DOCUMENT), "exec"), found)
    assert found["status"].tolist() == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(found["descriptors"], axis=1), 1, rtol=1e-5)


def test_warm_up_requests(exported, session):
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(exported / WARMUP))
    ]
    signatures = [log.predict_log.request.model_spec.signature_name for log in logs]
    assert signatures == ["serving_default", "serving_default", "images"]
    for log in logs:
        request = log.predict_log.request
        # A server that batches refuses inputs of unequal leading sizes.
        assert {tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()} == {1}
        response = predict(session, request)
        if "status" in response.outputs:
            assert tf.make_ndarray(response.outputs["status"]).tolist() == [0]
        norm = np.linalg.norm(tf.make_ndarray(response.outputs["descriptors"]))
        np.testing.assert_allclose(norm, 1, rtol=1e-5)


def test_the_documents_file_of_batching_parameters_exists(exported):
    assert f"/models/dolg/1/{BATCHING}" in DOCUMENT.read_text()
    lines = (exported / BATCHING).read_text().splitlines()
    fields = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z_]+ \{ value: \w+ \}", line) for line in fields)


@pytest.mark.slow
def test_threads_get_the_same_answers_and_memory_stays(exported):
    command = [sys.executable, "benchmarks/speed/serving_soak.py", f"--saved_model={exported}"]
    command += ["--seconds=30", "--max_side=160"]
    subprocess.run(command, cwd=DOCUMENT.parents[1], check=True)
