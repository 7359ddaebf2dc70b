"""Whole ways through the house."""
