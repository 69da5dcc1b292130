"""Run the pipeline from the command line: lock the workdir, stop on signals, exit with a message."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import jax
from filelock import FileLock, Timeout

from chexseg_jax.evaluation.chexlocalize import ChexlocalizeError
from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.cpu import keep_memory
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.terminal import close_bars
from chexseg_jax.training.data import BatchError
from chexseg_jax.training.loop import NotFinite
from chexseg_jax.training.signals import Stopped, raise_on_signals
from chexseg_jax.weights.convert import WeightsError
from datasets.errors import DataError
from experiments.run.compile_cache import persistent_compilation_cache

ERRORS = (DataError, BatchError, WeightsError, ChexlocalizeError, NotFinite, OSError)
"""Errors that a user can fix: reported as a message, without a traceback."""


@contextmanager
def managed_run(workdir: Path) -> Iterator[None]:
    """Lock the workdir, cache compiled functions, and exit with 1 on errors, 143 or 130 on signals.

    Finished work stays in the workdir in either case.
    """
    # Not restored: arrays that are collected at exit report errors after the end of this function.
    before = sys.unraisablehook
    sys.unraisablehook = lambda swallowed: _is_closed_loop(swallowed) or before(swallowed)
    # Orbax logs at length what it then raises, and asyncio what Orbax has not awaited.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    keep_memory()
    try:
        with (
            explain_write_errors(workdir),  # for writers that do not name the file
            exclusive_workdir(workdir),
            raise_on_signals(),
            persistent_compilation_cache(workdir),
        ):
            yield
    except Stopped as stopped:
        _exit_stopped(stopped)
    except ERRORS as error:
        close_bars()
        sys.exit(f"{error}")


def _is_closed_loop(swallowed: "sys.UnraisableHookArgs") -> bool:
    # After one array fails to be written, TensorStore reports the others to Orbax's closed event loop.
    return str(swallowed.exc_value) == "Event loop is closed"


@contextmanager
def exclusive_workdir(workdir: Path) -> Iterator[None]:
    """Hold the workdir's lock, which the system releases when the process ends.

    Raises:
        DataError: another run holds it.
    """
    if jax.process_index() > 0:  # the first process of a run holds the lock
        wait_for_all("locked")
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(workdir / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise DataError(
            f"{workdir}: another run is at work in it; wait for it, or give another --workdir"
        ) from error
    with lock:
        wait_for_all("locked")
        yield


@contextmanager
def exit_on_errors(*errors: type[Exception]) -> Iterator[None]:
    """Print errors of these types and exit with code 2; exit with 143 or 130 on signals."""
    try:
        with raise_on_signals():
            yield
    except Stopped as stopped:
        _exit_stopped(stopped)
    except errors as error:
        close_bars()
        print(error, file=sys.stderr)
        sys.exit(2)


def _exit_stopped(stopped: Stopped) -> NoReturn:
    close_bars()
    print(f"\nStopped{stopped.where}. Run the same command to go on.", file=sys.stderr)
    sys.exit(stopped.code)
