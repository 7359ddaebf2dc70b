"""The authors' network on one's own landmarks: each command as a user types it."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dolg_tf.modeling.model_dir import load_network
from dolg_tf.weights.files.tensors import open_tensors, write_tensors

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def _command(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _photos(folder, standin):
    rows = ["path,landmark"]
    for landmark in ("arch", "bridge"):
        for number in range(8):
            path = folder / landmark / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = number + 100 * (landmark == "arch")
            Image.fromarray(standin.image(80, 96, seed)).save(path)
            rows.append(f"{landmark}/{number}.jpg,{landmark}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_a_converted_network_is_finetuned_exported_and_searched_with(tmp_path, standin):
    shapes = json.loads((GOLDEN / "r50_no_multi_atrous.json").read_text())
    state = {name: standin.value(name, shape) for name, shape in shapes.items()}
    write_tensors(tmp_path / "r50.pyth", state)
    _photos(tmp_path / "photos", standin)
    model, run = tmp_path / "model", tmp_path / "run"

    _command(
        "export/convert_checkpoint.py", f"--input={tmp_path / 'r50.pyth'}", f"--output={model}"
    )
    _command(
        *("-m", "dolg_tf", "records", f"--labels_csv={tmp_path / 'photos/labels.csv'}"),
        *(f"--output_dir={tmp_path / 'records'}", "--num_shards=2"),
    )
    log = _command(
        *("train.py", "--flagfile=configs/finetune.flags", f"--init_from={model}"),
        *(f"--logdir={run}", f"--train_file_pattern={tmp_path / 'records/train-*'}"),
        *(f"--validation_file_pattern={tmp_path / 'records/validation-*'}", "--image_size=64"),
        *("--batch_size=4", "--accumulate=1", "--max_steps=3", "--log_every=1"),
    )
    assert "r50.pyth" in log and "class head: random, since a model directory has none" in log
    before, config, _ = load_network(model)
    after, found, _ = load_network(run)
    # resnet50, BGR and no multi-atrous come from the directory, not from flags.
    assert found.preprocessing == config.preprocessing and not found.multi_atrous
    assert found.gem_p == config.gem_p
    stem = [
        np.asarray(n.get_layer("backbone").get_layer("conv1_conv").kernel) for n in (before, after)
    ]
    assert 0 < np.abs(stem[1] - stem[0]).max() < 1  # trained, from there
    norm = [n.get_layer("backbone").get_layer("conv1_bn").get_weights() for n in (before, after)]
    for ours, theirs in zip(*norm, strict=True):  # --freeze_batch_norm
        np.testing.assert_array_equal(ours, theirs)

    _command("export/export_saved_model.py", f"--model_dir={run}", f"--output={tmp_path / 'saved'}")
    _command(
        *("-m", "dolg_tf", "extract", f"--saved_model={tmp_path / 'saved'}"),
        *(f"--images={tmp_path / 'photos'}", "--scales=1", f"--output={tmp_path / 'set'}"),
    )
    rows = np.concatenate([np.load(file) for file in sorted((tmp_path / "set").glob("*.npy"))])
    assert rows.shape == (16, 512)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)

    _command(
        *("export/convert_checkpoint.py", "--to=official", f"--input={run}"),
        f"--output={tmp_path / 'mine.pyth'}",
    )
    back = open_tensors(tmp_path / "mine.pyth").tensors
    assert back["desc_cls.weight"].shape == (2, 512) and back["desc_cls.t"].shape == (1,)
