"""Aggregated selective match kernels (ASMK): search by local features without matching them."""
