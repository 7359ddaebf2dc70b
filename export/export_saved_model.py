"""Exports a run or model directory: `python export/export_saved_model.py --model_dir --output`."""

from dolg_tf import config
from dolg_tf.serving.saved_model import ExportConfig, export_saved_model

if __name__ == "__main__":
    config.main(export_saved_model, ExportConfig)
