"""Terminals: Ctrl-C without a traceback, characters that a terminal lacks, messages beside bars."""

import sys
from types import TracebackType

from tqdm import tqdm


def prepare_terminal() -> None:
    """Replace characters that the terminal cannot show, and end at Ctrl-C with a word.

    Commands call this before imports that take seconds.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    sys.excepthook = _excepthook


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        close_bars()
        sys.stderr.write("\nStopped.\n")
    else:
        sys.__excepthook__(kind, error, trace)


def close_bars() -> None:
    """End the lines of all progress bars, so that a message starts on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
