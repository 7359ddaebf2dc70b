"""Your own photos: found, described, adapted to, searched and kept in step. No labels needed."""
