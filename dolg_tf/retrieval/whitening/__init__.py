"""Whitenings, learned and applied."""
