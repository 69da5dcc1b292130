"""Data pipeline, training step, training loop, checkpoints, metric logs and signals."""
