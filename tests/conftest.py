"""Shared fixtures. Tests mirror the package's folders."""

import importlib.util
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as commands do, so that both compute the same

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    # Logs of file names that are not UTF-8 could not be sent between pytest's processes.
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def _folder(variable: str) -> pathlib.Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: this test reads data that is not in the repository")
    return pathlib.Path(value)


@pytest.fixture
def real_photos() -> pathlib.Path:
    """Folder of real landmark photos with a labels.csv (path, landmark, split)."""
    return _folder("DOLG_REAL_PHOTOS")


@pytest.fixture
def ground_truths() -> pathlib.Path:
    """Folder of the revisited ground truths and of scores computed from them."""
    return _folder("DOLG_GROUND_TRUTHS")


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def standin():
    """The module that rebuilds the stand-in official checkpoint and its test images."""
    spec = importlib.util.spec_from_file_location("standin", GOLDEN / "standin_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def official_r50(standin):
    """Function from multi_atrous to (network, config) with the stand-in official weights."""
    import functools

    from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.weights.official import load_state_dict

    @functools.cache
    def make(multi_atrous: bool):
        name = "r50.json" if multi_atrous else "r50_no_multi_atrous.json"
        shapes = json.loads((GOLDEN / name).read_text())
        config = DolgConfig(multi_atrous=multi_atrous, preprocessing=OFFICIAL_PREPROCESSING)
        network = build_dolg(config)
        load_state_dict(network, {key: standin.value(key, shape) for key, shape in shapes.items()})
        return network, config

    return make


@pytest.fixture(scope="session")
def how_state(standin):
    """A stand-in checkpoint of HOW's -R50: array by their name."""
    shapes = json.loads((GOLDEN / "how_r50.json").read_text())
    return {name: standin.how_value(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def how_r50(how_state):
    """HOW's -R50 with stand-in weights: (network, config)."""
    from dolg_tf.modeling.config import HowConfig
    from dolg_tf.modeling.how import build_how
    from dolg_tf.weights.how import load_state_dict

    network = build_how(HowConfig())
    load_state_dict(network, how_state)
    return network, HowConfig()
