"""Steps of HOW's training, and runs that are interrupted."""

import pathlib
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.modeling.config import HowConfig
from dolg_tf.modeling.how import unit
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.training.tuples.loop import train
from dolg_tf.training.tuples.photos import TuplePhotos
from dolg_tf.training.tuples.trainer import TuplesTrainer
from dolg_tf.weights.how import load_state_dict

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[2] / "golden" / "how_loss.npz"))
SMALL = HowConfig(backbone="resnet17_small", dimensions=8)


def _recipe(logdir="", **changes):
    values = {
        "logdir": str(logdir),
        "pairs": 7,
        "pool": 14,
        "negatives": 2,
        "tuples": 2,
        "epochs": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "log_every": 1,
        "deterministic": True,
    }
    return TuplesTraining(**{**values, **changes})


def _photos(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (48 + 16 * n, 80, 3), np.uint8) for n in range(count)]


def test_a_tuple_is_the_authors(how_state, standin):
    """Descriptors, loss and the norm of each parameter's gradient, through the -R50."""
    trainer = TuplesTrainer(HowConfig(), _recipe(negatives=2), 7)
    load_state_dict(trainer.network, how_state)
    photos = [standin.image(96, 128, k) for k in range(4)]
    found = np.stack([trainer.describe(photo).numpy() for photo in photos], axis=1)
    np.testing.assert_allclose(found, GOLDEN["step/descriptors"], atol=1e-5)
    loss = trainer.add_tuple(photos)
    assert loss == pytest.approx(float(GOLDEN["step/loss"]), abs=1e-5)
    totals = dict(zip((v.path for v in trainer.variables), trainer._totals, strict=True))
    assert len(totals) == len(trainer.network.trainable_variables)
    expected = GOLDEN["step/gradient/features.1.weight"]
    (gamma,) = (path for path in totals if path.startswith("conv1_bn") and path.endswith("gamma"))
    np.testing.assert_allclose(totals[gamma], expected, atol=1e-5)
    names = GOLDEN["step/parameter_names"].tolist()
    theirs = [
        norm
        for name, norm in zip(names, GOLDEN["step/gradient_norms"], strict=True)
        if not name.startswith("dim_reduction")
    ]
    ours = [np.linalg.norm(total.numpy()) for total in totals.values()]
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-3, atol=1e-5)


def test_a_step_sums_tuples_and_is_pytorchs_adam():
    trainer = TuplesTrainer(SMALL, _recipe(weight_decay=0.1), 7)
    trainer.learn_whitening(_photos(8))
    tuples = [_photos(4, seed) for seed in (1, 2)]
    trained = {v.path for v in trainer.variables}
    fixed = {v.path: v.numpy() for v in trainer.network.variables if v.path not in trained}
    assert {"reduced/kernel", "conv1_bn/moving_mean"} <= set(fixed)
    values = [v.numpy().astype(np.float64) for v in trainer.variables]
    first, second = ([np.zeros_like(value) for value in values] for _ in range(2))
    for number in (1, 2):
        with tf.GradientTape() as tape:
            loss = 0.0
            for photos in tuples:
                rows = [
                    unit(trainer.network(photo[None] / np.float32(255), training=False))[0]
                    for photo in photos
                ]
                distances = [
                    tf.sqrt(tf.reduce_sum((rows[0] - row + 1e-6) ** 2)) for row in rows[1:]
                ]
                loss += distances[0] ** 2 / 2
                loss += sum(tf.maximum(0.0, 0.8 - far) ** 2 / 2 for far in distances[1:])
        gradients = tape.gradient(loss, [v.value for v in trainer.variables])
        assert sum(map(trainer.add_tuple, tuples)) == pytest.approx(float(loss), rel=1e-4)
        for at, gradient in enumerate(gradients):
            whole = gradient.numpy() + 0.1 * values[at]
            first[at] = 0.9 * first[at] + 0.1 * whole
            second[at] = 0.999 * second[at] + 0.001 * whole**2
            mean, square = first[at] / (1 - 0.9**number), second[at] / (1 - 0.999**number)
            values[at] = values[at] - 1e-3 * mean / (np.sqrt(square) + 1e-8)
        trainer.update(1e-3)
        for variable, value in zip(trainer.variables, values, strict=True):
            difference = np.abs(variable.numpy() - value)
            # Where the gradient is rounding, Adam's first steps have either sign.
            assert np.mean(difference > 1e-5) < 0.01, variable.path
            values = [v.numpy().astype(np.float64) for v in trainer.variables]
    for path, value in fixed.items():
        found = next(v for v in trainer.network.variables if v.path == path)
        assert (found.numpy() == value).all(), path


def test_a_whitening_needs_features():
    trainer = TuplesTrainer(SMALL, _recipe(), 7)
    with pytest.raises(InputError, match="needs more than 256 features; the photos gave 15"):
        trainer.learn_whitening(_photos(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven landmarks of two photos, stripes of different directions, of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng, lines = np.random.default_rng(0), ["path,landmark"]
    for landmark in range(7):
        for number in range(2):
            y, x = np.mgrid[0 : 96 + 32 * number, 0:112]
            angle = landmark * np.pi / 7
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 4)
            pixels = 128 + 80 * wave[..., None] + rng.normal(0, 20, (*wave.shape, 3))
            name = f"{landmark}_{number}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},{landmark}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return TuplesData(photos=str(folder / "labels.csv"), image_size=96)


def _weights(logdir):
    return {v.path: v.numpy() for v in load_network(logdir).network.variables}


def test_an_interrupted_run_ends_like_one_that_was_not(data, tmp_path):
    scores = iter([0.2, 0.1, 0.3, 0.2])
    judged = []

    def retrieval(network):
        judged.append(network(np.ones((1, 32, 32, 3), np.float32)).shape)
        return {"mAP": next(scores)}

    steps = {"validate_every": 1}
    train(SMALL, data, _recipe(tmp_path / "whole", **steps), retrieval)
    assert judged == [(1, 8)] * 2  # after each epoch of three steps
    for last in (2, 3, 5, 6):  # within an epoch, and at its end
        train(SMALL, data, _recipe(tmp_path / "run", max_steps=last))
    whole, run = _weights(tmp_path / "whole"), _weights(tmp_path / "run")
    for path, value in whole.items():
        np.testing.assert_array_equal(run[path], value, err_msg=path)
    best = load_network(tmp_path / "whole", checkpoint="best")
    assert best.config == SMALL and best.provenance["step"] == 3
    with pytest.raises(InputError, match=r"holds a run with --margin=0\.8, not 0\.7"):
        train(SMALL, data, _recipe(tmp_path / "run", margin=0.7))


def test_a_signal_while_photos_are_described_ends_the_run(data, tmp_path, monkeypatch):
    load, passes = TuplePhotos.load, []

    def interrupted(self, numbers):
        passes.append(numbers)
        for place, photo in enumerate(load(self, numbers)):
            if len(passes) == 3 and place == 4:  # whitening, queries, pool
                signal.raise_signal(signal.SIGTERM)
            yield photo

    with monkeypatch.context() as patch:
        patch.setattr(TuplePhotos, "load", interrupted)
        with pytest.raises(SystemExit) as ended:
            train(SMALL, data, _recipe(tmp_path / "run", max_steps=1))
    assert ended.value.code == 143 and len(passes) == 3
    assert load_network(tmp_path / "run").provenance["step"] == 0
    train(SMALL, data, _recipe(tmp_path / "run", max_steps=1))
    assert load_network(tmp_path / "run").provenance["step"] == 1
