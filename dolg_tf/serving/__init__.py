"""Weights become SavedModels."""
