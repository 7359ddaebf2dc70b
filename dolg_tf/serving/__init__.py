"""Weights -> SavedModels, ONNX and LiteRT files."""
