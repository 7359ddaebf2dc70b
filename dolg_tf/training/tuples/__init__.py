"""Training of HOW: tuples of a query, a positive and mined negatives."""
