"""Exact search and exact places; one statement on ties."""
