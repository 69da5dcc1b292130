"""Join the processes of one run; call it before any other use of JAX."""

import sys
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Processes:
    """The index and number of processes, where JAX cannot detect a cluster."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    count: int | None = None
    """The number of processes."""
    index: int | None = None
    """The index of this process, from 0."""

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


def join_cluster(processes: Processes) -> None:
    """Join the other processes of the run; without a coordinator JAX detects the cluster.

    Exits with a message if there is no cluster or it cannot be reached. If another process is lost
    later, JAX reports it and aborts this one; the same command in every process resumes the run.
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
