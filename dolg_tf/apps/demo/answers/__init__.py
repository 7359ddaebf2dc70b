"""Answers: in which order photos come, which share a tile, and why they were found."""
