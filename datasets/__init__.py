"""TFDS builders: the only place, with experiments, that knows dataset names, paths and columns."""
