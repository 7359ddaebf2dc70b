"""Exports a network as a SavedModel: `--model_dir --output [--mode=serving|delg|kaggle|tf1]`."""

from dolg_tf import config
from dolg_tf.serving.saved_model import ExportConfig, export_saved_model

if __name__ == "__main__":
    config.main(export_saved_model, ExportConfig)
