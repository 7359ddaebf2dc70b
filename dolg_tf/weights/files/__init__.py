"""Readers of other frameworks' weight files, which run nothing in them."""
