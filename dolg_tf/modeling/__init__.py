"""Batches become descriptors and logits."""
