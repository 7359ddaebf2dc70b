"""Converts the authors' checkpoints to model directories, and back: `--input --output [--to]`."""

from dolg_tf.stage import config
from dolg_tf.weights.convert import ConvertConfig, convert_checkpoint

if __name__ == "__main__":
    config.main(convert_checkpoint, ConvertConfig)
