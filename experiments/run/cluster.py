"""Joining the processes of one run, before anything else is asked of JAX."""

import atexit
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.run.witness import watched


@dataclass(frozen=True)
class Processes:
    """Which process this is of how many, where no cluster says so."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this is, from 0."""

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.count, self.index)]
        if any(given) and not all(given):
            raise ValueError(
                "--processes.coordinator, --processes.count and --processes.index go together"
            )
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise ValueError(
                f"--processes.index must lie in [0, {self.count}), got {self.index}; "
                "the first process is 0"
            )


def join_cluster(processes: Processes, workdir: Path) -> None:
    """Joins the other processes; without an address of theirs JAX looks for the cluster it is in.

    Ends the program with a sentence where there is none, or where it cannot be reached, and has one said
    if JAX later ends this process because it has lost another.
    """
    try:
        jax.distributed.initialize(
            processes.coordinator, num_processes=processes.count, process_id=processes.index
        )
    except (ValueError, RuntimeError) as error:
        sys.exit(
            f"--distributed: {error}. On a TPU pod, SLURM or Open MPI start it once a host or GPU; "
            "elsewhere give --processes.coordinator, --processes.count and --processes.index"
        )
    witness = watched(
        f"{workdir}: this process was ended from outside, or has lost another of the run. What was "
        "finished is kept: start the same command in every process again"
    )
    atexit.register(_leave, witness)


def _leave(witness: subprocess.Popen[bytes]) -> None:
    jax.distributed.shutdown()  # which aborts too, if another was lost meanwhile
    witness.communicate(b"farewell")
