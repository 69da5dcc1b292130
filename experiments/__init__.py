"""What one runs; the only place that reads a command line."""
