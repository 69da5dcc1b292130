"""Semi-supervised chest X-ray segmentation in JAX."""
