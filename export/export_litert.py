"""Exports a network for LiteRT: `--model_dir --output=FILE.tflite [--quantize]`."""

from dolg_tf import config
from dolg_tf.serving.litert_export import LiteRTConfig, export_litert

if __name__ == "__main__":
    config.main(export_litert, LiteRTConfig)
