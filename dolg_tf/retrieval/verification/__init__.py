"""Geometric verification: do the local features of two photos agree on one view of a place?"""
