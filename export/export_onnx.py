"""Exports a network as an ONNX file: `--model_dir --output=FILE.onnx`."""

from dolg_tf.serving.onnx_export import OnnxConfig, export_onnx
from dolg_tf.stage import command

if __name__ == "__main__":
    command.main(export_onnx, OnnxConfig)
