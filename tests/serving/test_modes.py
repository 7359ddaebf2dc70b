"""The table of export modes: each is complete, and refuses the options of the others."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.stage.config import InputError

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {field.name: field for field in dataclasses.fields(ExportConfig)}
OTHER = {
    "scales": (1.0,),
    "max_pixels": 1,
    "upright": False,
    "precision": "bfloat16",
    "whitening": "w.npz",
    "features": "both",
    "local_scales": (1.0,),
    "local_threshold": 2.0,
    "local_reduction": "r.npz",
    "iou": 0.9,
    "zip": True,
    "index": "i",
    "k": 3,
    "index_precision": "float16",
    "labels_csv": "l.csv",
    "quantize": "dynamic",
}


def config(mode, **options):
    options.setdefault("output", f"o{MODES[mode].suffix}")
    if mode == "search":
        options.setdefault("index", "i")
    return ExportConfig(model_dir="m", mode=mode, **options)


def files(folder, prefix=""):
    """The names in a folder of modules, without `prefix`."""
    found = {path.stem for path in folder.glob(f"{prefix}*.py")} - {"__init__"}
    return {name.removeprefix(prefix) for name in found}


def test_each_mode_has_a_choice_a_module_a_test_and_a_line_in_the_documents():
    modes = set(MODES)
    assert set(FIELDS["mode"].metadata["choices"]) == modes
    assert files(ROOT / "dolg_tf" / "serving" / "modes") == modes
    assert files(ROOT / "tests" / "serving" / "modes", "test_") == modes
    document = (ROOT / "docs" / "export.md").read_text()
    assert {mode for mode in modes if f"\n| `{mode}` | " in document} == modes


def test_each_option_of_some_modes_is_an_option():
    assert {name for mode in MODES.values() for name in mode.takes} == set(OTHER)
    assert set(OTHER) < set(FIELDS)
    assert {name for mode in MODES.values() for name in mode.remedies} <= set(OTHER)


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("mode", MODES)
def test_an_option_is_taken_or_refused_with_the_remedy(mode, option):
    given = {option: OTHER[option]}
    if option.startswith("local_") or option == "iou":  # of no use with global features alone
        given["features"] = "both" if "features" in MODES[mode].takes else "global"
    if option in MODES[mode].takes:
        assert getattr(config(mode, **given), option) == OTHER[option]
        return
    with pytest.raises(InputError, match=rf"--{option} with --mode={mode}: .* choose --mode="):
        config(mode, **given)
    if option != "index":
        assert getattr(config(mode), option) == FIELDS[option].default


def test_delg_says_where_whitening_belongs():
    with pytest.raises(InputError, match=r"one row per scale.* or choose --mode=serving or kaggle"):
        config("delg", whitening="w.npz")


def test_a_file_has_the_suffix_of_its_mode():
    with pytest.raises(InputError, match=r"--output=m\.pb must end in \.onnx with --mode=onnx"):
        config("onnx", output="m.pb")
    with pytest.raises(InputError, match=r"must end in \.tflite"):
        config("litert", output="m.onnx")


def test_another_mode_is_refused():
    with pytest.raises(InputError, match="--mode=torch must be one of serving, delg, kaggle"):
        ExportConfig(model_dir="m", output="o", mode="torch")


def test_a_refusal_does_not_wait_for_tensorflow(tmp_path):
    code = f"""
import sys
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.export import export
try:
    export(ExportConfig(model_dir="m", output={str(tmp_path)!r}, mode="kaggle"))
except ValueError as error:
    print(error)
print(sorted({{"tensorflow", "keras"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "exists; give --overwrite" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("mode", ["delg", "tf1"])
@pytest.mark.parametrize("option", ["local_scales", "local_threshold", "local_reduction", "iou"])
def test_options_of_local_features_need_them(mode, option):
    with pytest.raises(InputError, match=rf"--{option} with --features=global: .*local or both"):
        config(mode, **{option: OTHER[option]})
