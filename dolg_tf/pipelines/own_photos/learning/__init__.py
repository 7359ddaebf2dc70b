"""A search of your own photos that learns from their labels, where it helps."""
