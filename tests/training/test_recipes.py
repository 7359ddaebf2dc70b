"""The paper's recipe as users type it."""

import pathlib
import subprocess
import sys

import pytest

from dolg_tf.data.gldv2 import RecordsConfig, build_records
from dolg_tf.data.toy import ToyConfig, write_toy

ROOT = pathlib.Path(__file__).parents[2]


def _train(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(done) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_bare_it_says_which_command_makes_the_records(tmp_path):
    done = _train(f"--flagfile={ROOT / 'configs' / 'r50.flags'}", cwd=tmp_path)
    assert done.returncode == 1
    assert "'data/gldv2/train-*'" in _last_line(done)
    assert "python -m dolg_tf.data.gldv2" in _last_line(done)
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_r50_trains_on_real_records_at_a_reduced_size(tmp_path):
    toy = ToyConfig(output=str(tmp_path / "photos"), landmarks=4, unseen_landmarks=2)
    write_toy(toy)
    build_records(
        RecordsConfig(
            images_dir=str(tmp_path / "photos" / "train"),
            train_csv=str(tmp_path / "photos" / "train.csv"),
            train_clean_csv=str(tmp_path / "photos" / "train_clean.csv"),
            output_dir=str(tmp_path / "data" / "gldv2"),
            num_shards=2,
        )
    )
    flags = [f"--flagfile={ROOT / 'configs' / 'r50.flags'}", "--image_size=128", "--batch_size=4"]
    done = _train(*flags, "--max_steps=3", "--backbone_weights=nowhere.weights.h5", cwd=tmp_path)
    assert done.returncode == 1 and "nowhere.weights.h5: no such file" in _last_line(done)
    done = _train(*flags, "--max_steps=3", "--backbone_weights=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "random weights (--backbone_weights=none)" in done.stderr
    assert "81313 classes" in done.stderr and "step 3/3" in done.stderr
    assert (tmp_path / "runs" / "r50" / "checkpoints").is_dir()
