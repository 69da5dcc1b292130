"""How a run ends early: in one sentence, with its work kept; and how no other is let into its folder."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from chexseg_jax.evaluation.chexlocalize import ChexlocalizeError
from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.cpu import keep_memory
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.training.data import BatchError
from chexseg_jax.training.loop import NotFinite
from chexseg_jax.training.signals import Stopped, raise_on_signals
from chexseg_jax.weights.convert import WeightsError
from datasets.errors import DataError
from datasets.holding import hold
from experiments.run.compile_cache import persistent_compilation_cache

ERRORS = (DataError, BatchError, WeightsError, ChexlocalizeError, NotFinite, OSError)
"""What a user can mend, said in a sentence."""


@contextmanager
def run_errors_to_exit_codes(workdir: Path) -> Iterator[None]:
    """Ends the program kindly: exit code 1 for an error, 143 or 130 for a signal; work is kept.

    What is compiled meanwhile stays in the work folder too.
    """
    # Never put back: what is collected as the program ends reports itself after the last line here.
    sys.unraisablehook = _unraised
    # Orbax logs at length what it then raises, and asyncio what Orbax left unread.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    keep_memory()
    try:
        # Not every writer says which file found no room.
        with (
            explain_write_errors(workdir),
            exclusive_workdir(workdir),
            raise_on_signals(),
            persistent_compilation_cache(workdir),
        ):
            yield
    except Stopped as stopped:
        print(f"\nStopped{stopped.where}. Run the same command to go on.", file=sys.stderr)
        sys.exit(stopped.code)
    except ERRORS as error:
        sys.exit(f"{error}")


def _unraised(found: "sys.UnraisableHookArgs") -> None:
    # When one array finds no room, TensorStore reports the others to a loop that Orbax has closed.
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


@contextmanager
def exclusive_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a work folder; the lock dies with the process, however that ends.

    Raises:
        DataError: another run is at work in it.
    """
    if jax.process_index() > 0:  # of a run of several processes the first holds the lock
        wait_for_all("locked")
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    held = hold(workdir / ".lock")
    if held is None:
        raise DataError(
            f"{workdir}: another run is at work in it; wait for it, or give another --workdir"
        )
    with held:
        wait_for_all("locked")
        yield


@contextmanager
def errors_to_exit_code_2(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with what an error of these kinds says."""
    try:
        yield
    except errors as error:
        print(error, file=sys.stderr)
        sys.exit(2)
