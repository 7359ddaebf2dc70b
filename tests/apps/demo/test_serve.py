"""The command refuses before it loads anything."""

import socket
import sys

import pytest

from dolg_tf.apps.demo import serve
from dolg_tf.apps.demo.indexed import IndexedPhotos
from dolg_tf.apps.demo.serve import DemoConfig
from dolg_tf.stage.config import InputError


def _settings(**options):
    return DemoConfig(saved_model="model", index="index", **options)


def test_a_port_that_is_taken(monkeypatch):
    monkeypatch.setattr(IndexedPhotos, "__init__", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port={port} cannot be used \(Address already"):
            serve.demo(_settings(port=port))


def test_without_its_packages(monkeypatch):
    monkeypatch.setattr(IndexedPhotos, "__init__", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"the page: uvicorn is missing; pip install .*\[demo\]"):
        serve.demo(_settings())


@pytest.mark.parametrize(
    "options", [{"port": 0}, {"port": 65536}, {"max_bytes": 0}, {"max_seconds": 0.0}]
)
def test_flags_that_cannot_be(options):
    with pytest.raises(InputError, match=f"--{next(iter(options))}="):
        _settings(**options)
