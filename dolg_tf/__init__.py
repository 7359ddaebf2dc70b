"""DOLG in TensorFlow: one 512-d descriptor per photo, and all that trains, serves and scores it."""

__version__ = "0.1.0"
