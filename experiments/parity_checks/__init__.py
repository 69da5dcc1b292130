"""Comparisons with the PyTorch references' outputs."""
