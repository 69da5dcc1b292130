"""One life of a run: a forked process that is left to end, or killed."""

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jax

from experiments.run import cli

PATIENCE = 300.0
"""A life longer than this hangs, seconds."""


def begin(work: Callable[[], object], said: Path, cache: Path) -> int:
    """Forks a process that does some work, and returns its id; this one must not have used JAX yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of threads, of which there are none yet
        pid = os.fork()
    if pid:
        os.setpgid(pid, pid)  # here as well as there, as either may be first
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # All lives share one cache in place of one in each work folder.
        cli.persistent_compilation_cache = nullcontext
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        print(ended.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int) -> int | None:
    """Returns the exit code of a process that has ended, else None."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def finish(pid: int) -> int:
    """Waits for a process and returns its exit code; one that hangs is killed."""
    code = wait(pid, lambda: False)
    return kill(pid) if code is None else code


def kill(pid: int) -> int:
    """Kills a process with all that it started, and returns its exit code."""
    os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait(pid: int, until: Callable[[], bool]) -> int | None:
    """Waits until something holds, or the process hangs; returns its exit code if it ended before."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit and not until():
        if (code := ended(pid)) is not None:
            return code
        time.sleep(0.002)
    return None


def kill_once(
    pid: int, aimed: Callable[[], bool], span: float, chance: random.Random
) -> int | None:
    """Kills a process at a random moment of a span that starts when `aimed` holds.

    Returns:
        None if it was killed, else the exit code it ended with before.
    """
    if (code := wait(pid, aimed)) is not None:
        return code
    moment = time.monotonic() + chance.uniform(0, span)
    if (code := wait(pid, lambda: time.monotonic() >= moment)) is not None:
        return code
    code = kill(pid)
    return None if code == -signal.SIGKILL else code
