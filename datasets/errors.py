"""What went wrong with somebody's files."""


class DataError(ValueError):
    """Input that cannot be prepared, or data that is not there: where, what, and what to do."""
