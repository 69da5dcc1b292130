"""Workloads, timing, roofline and table of `experiments.benchmark`, and its PyTorch counterparts."""
