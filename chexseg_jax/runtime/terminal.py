"""Terminals: Ctrl-C without a traceback, characters that a terminal lacks, messages beside bars."""

import _thread
import signal
import sys
import threading
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
    before = sys.unraisablehook

    def unraisable(swallowed: "sys.UnraisableHookArgs") -> None:
        if not _sent_again(swallowed):
            before(swallowed)

    sys.unraisablehook = unraisable


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        close_bars()
        sys.stderr.write("\nStopped.\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _sent_again(swallowed: "sys.UnraisableHookArgs") -> bool:
    """Send a signal again whose exception rose in a finalizer or callback, which swallows it."""
    if issubclass(swallowed.exc_type, Exception) or sys.is_finalizing():
        return False
    send_again(getattr(swallowed.exc_value, "number", signal.SIGINT))
    return True


def send_again(number: int) -> None:
    """Send a signal to the main thread a moment later, when it is elsewhere."""
    again = threading.Timer(0.05, _thread.interrupt_main, (number,))
    again.daemon = True
    again.start()


def close_bars() -> None:
    """End the lines of all progress bars, so that a message starts on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
