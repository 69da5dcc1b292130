"""Commands that do nothing if something is wrong: one sentence, and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with what an error of these kinds says."""
    try:
        yield
    except errors as error:
        print(error, file=sys.stderr)
        sys.exit(2)
