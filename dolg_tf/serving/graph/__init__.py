"""TensorFlow graphs: what an export computes, whatever its mode."""
