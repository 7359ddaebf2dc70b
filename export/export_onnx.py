"""Exports a network as an ONNX file: `--model_dir --output=FILE.onnx`."""

from dolg_tf import config
from dolg_tf.serving.onnx_export import OnnxConfig, export_onnx

if __name__ == "__main__":
    config.main(export_onnx, OnnxConfig)
