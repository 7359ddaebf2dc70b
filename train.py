"""Trains a DOLG network: `python train.py --flagfile=configs/r50.flags`."""

from dolg_tf import config, recipe


def train(model, data, training):
    """Trains a DOLG network on TFRecords and writes a run directory; run it again to continue."""
    from dolg_tf.training.trainer import train  # takes seconds: not for --help

    train(model, data, training)


if __name__ == "__main__":
    config.main(train, recipe.DolgConfig, recipe.DataConfig, recipe.TrainingConfig)
