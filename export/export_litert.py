"""Exports a network for LiteRT: `--model_dir --output=FILE.tflite [--quantize]`."""

from dolg_tf.serving.litert_export import LiteRTConfig, export_litert
from dolg_tf.stage import command

if __name__ == "__main__":
    command.main(export_litert, LiteRTConfig)
