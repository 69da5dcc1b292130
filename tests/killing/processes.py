"""Forked processes that run to their end or are killed."""

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

TIMEOUT = 300.0
"""Seconds after which a process is taken to hang."""


def start(work: Callable[[], object], log: Path, cache: Path) -> int:
    """Fork a process that does some work, and return its id; the parent must not have used JAX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of threads, of which there are none yet
        pid = os.fork()
    if pid:
        os.setpgid(pid, pid)  # in both processes, because either may run first
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # All processes share one cache in place of one in each work folder.
        cli.persistent_compilation_cache = nullcontext
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        print(error.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def poll(pid: int) -> int | None:
    """Return a process's exit code, None if it is running."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def finish(pid: int) -> int:
    """Wait for a process and return its exit code; kill it if it hangs."""
    code = wait_until(pid, lambda: False)
    return kill(pid) if code is None else code


def kill(pid: int) -> int:
    """Kill a process with its children, and return its exit code."""
    os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until(pid: int, condition: Callable[[], bool]) -> int | None:
    """Wait until a condition holds or the timeout; return the exit code if the process ended before."""
    limit = time.monotonic() + TIMEOUT
    while time.monotonic() < limit and not condition():
        if (code := poll(pid)) is not None:
            return code
        time.sleep(0.002)
    return None


def kill_within(
    pid: int, started: Callable[[], bool], span: float, rng: random.Random
) -> int | None:
    """Kill a process at a random moment within `span` seconds of when `started` holds.

    Returns:
        None if it was killed, its exit code if it ended before.
    """
    if (code := wait_until(pid, started)) is not None:
        return code
    moment = time.monotonic() + rng.uniform(0, span)
    if (code := wait_until(pid, lambda: time.monotonic() >= moment)) is not None:
        return code
    code = kill(pid)
    return None if code == -signal.SIGKILL else code
