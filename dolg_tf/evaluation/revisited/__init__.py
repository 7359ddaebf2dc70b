"""Revisited Oxford and Paris."""
