"""A second stage of the search: the best answers are ordered by how many local features agree."""
