"""Exports, run by the libraries that serve them: TensorFlow's C library, onnxruntime, LiteRT."""
