"""What every stage is made of: configuration, files, progress, processes. No TensorFlow."""
