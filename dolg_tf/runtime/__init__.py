"""A SavedModel run through TensorFlow's C library."""
