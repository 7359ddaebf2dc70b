"""Photos become batches."""
