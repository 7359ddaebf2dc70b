"""Readers of other frameworks' weight files, which carry out nothing in them."""
