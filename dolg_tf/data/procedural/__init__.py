"""Procedural landmarks, drawn in GLDv2's layout."""
