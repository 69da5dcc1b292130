"""Comparisons with the outputs of PyTorch reference implementations."""
