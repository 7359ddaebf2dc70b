"""Photos -> batches."""
