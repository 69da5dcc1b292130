"""The error of all data preparation."""


class DataError(ValueError):
    """Invalid input or missing data; the message says where, what, and the remedy."""
