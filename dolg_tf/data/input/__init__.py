"""TFRecords -> batches."""
