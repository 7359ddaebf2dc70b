"""Exports a network as a SavedModel: `--model_dir --output [--mode=serving|delg|kaggle|tf1]`."""

from dolg_tf.serving.saved_model import ExportConfig, export_saved_model
from dolg_tf.stage import config

if __name__ == "__main__":
    config.main(export_saved_model, ExportConfig)
