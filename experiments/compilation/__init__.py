"""The parts of `experiments.compile`."""
