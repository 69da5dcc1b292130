"""One life of a run: a forked process that is left to end, or killed."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax


def begin(work: Callable[[], object], said: Path, cache: Path) -> int:
    """Forks a process that does some work, and returns its id; this one must not have used JAX yet."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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
    """Waits for a process and returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_once(
    pid: int, aimed: Callable[[], bool], span: float, chance: random.Random
) -> int | None:
    """Kills a process at a random moment of a span that starts when `aimed` holds.

    Returns:
        None if it was killed, else the exit code it ended with before.
    """
    while not aimed():
        if (code := ended(pid)) is not None:
            return code
        time.sleep(0.001)
    until = time.monotonic() + chance.uniform(0, span)
    while time.monotonic() < until:
        if (code := ended(pid)) is not None:
            return code
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)
    code = finish(pid)
    return None if code == -signal.SIGKILL else code
