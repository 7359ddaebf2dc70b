"""Local features: one photo's in memory, a set of them on disk, DELF's files."""
