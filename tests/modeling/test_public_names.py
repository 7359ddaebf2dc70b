"""The examples in the docstrings of `dolg_tf.build_dolg`, `DolgConfig` and `load_network` run."""

import dataclasses
import inspect
import re

import numpy

import dolg_tf
from dolg_tf.modeling.model_dir import save_dolg


def _run(name: str, **names) -> dict:
    """Runs the example of a public name, and returns the names it defines."""
    (code,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(getattr(dolg_tf, name)), re.DOTALL)
    names |= {"dolg_tf": dolg_tf, "dataclasses": dataclasses, "numpy": numpy}
    exec(inspect.cleandoc(code), names)
    return names


def test_build_dolg():
    assert _run("build_dolg")["descriptors"].shape == (2, 512)


def test_dolg_config():
    names = _run("DolgConfig")
    assert names["baseline"].backbone == names["config"].backbone != dolg_tf.DolgConfig().backbone


def test_load_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    config = dolg_tf.DolgConfig(backbone="resnet17_small", dilations=(1,))
    save_dolg(dolg_tf.build_dolg(config), config, "runs/mine", {"source": "a test"})
    photos = numpy.zeros((1, 32, 32, 3), "float32")
    assert _run("load_network", photos=photos)["descriptors"].shape == (1, 512)
    assert capsys.readouterr().out == "resnet17_small {'source': 'a test'}\n"
