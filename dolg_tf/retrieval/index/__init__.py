"""Descriptor sets -> an index on disk, and its answers."""
