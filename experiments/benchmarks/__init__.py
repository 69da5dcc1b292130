"""Benchmark workloads, timing, roofline, PyTorch peers."""
