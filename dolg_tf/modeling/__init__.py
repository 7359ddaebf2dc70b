"""From batches of photos to descriptors and logits."""
