"""Measure the speed and memory of every stage: `python -m experiments.benchmark`.

Each row is warmed up and repeated; compilation is timed separately. Beside images per second stand the
memory and the utilization: operations relative to the device's peak, and bytes moved relative to its
bandwidth, as counted by XLA or, for loops, by formula. `--out DIR` writes the table. With `--against
torch`, PyTorch does the same in this process, in alternation. That needs `pip install torch torchvision
segmentation-models-pytorch`, and on a GPU memory for both:

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.benchmark --against torch --out benchmark

Batches are smaller on a CPU than on an accelerator; the table gives their sizes.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from chexseg_jax.runtime.cpu import keep_memory
from experiments.benchmarks import torch_peers
from experiments.benchmarks.end_to_end import measure_end_to_end, measure_loader, phantom_images
from experiments.benchmarks.roofline import Peak, peak_bytes_in_use, peak_of
from experiments.benchmarks.table import (
    OURS,
    Measurement,
    describe_machine,
    markdown,
    measurement_of,
    write_benchmark,
)
from experiments.benchmarks.timing import CompiledWorkload, Runner, time_alternating
from experiments.benchmarks.workloads import (
    ACCELERATOR,
    CPU,
    QUICK,
    ROWS,
    WORKLOADS,
    RowName,
    Scale,
    Workload,
)
from experiments.run.cli import exit_on_errors


class BenchmarkError(ValueError):
    """Settings that no benchmark can have."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure the speed and memory of every stage."""

    only: tuple[RowName, ...] = ROWS
    """Which rows."""
    against: Literal["torch"] | None = None
    """Measure PyTorch's counterparts too."""
    batch: int | None = None
    """The batch size of every row."""
    repeats: int = 20
    """Measurements of a row, at most."""
    seconds: float = 60.0
    """For the measurements of a row, without compilation; one is always made."""
    out: Path | None = None
    """A folder for `benchmark.md` and `benchmark.json`."""
    quick: bool = False
    """Tiny networks and images: to test the command, not to measure."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.seconds <= 0:
            raise BenchmarkError("--repeats and --seconds must be more than 0")
        if self.batch is not None and self.batch < 1:
            raise BenchmarkError(f"--batch must be at least 1, got {self.batch}")

    def scale(self) -> Scale:
        """Return the sizes for this machine."""
        if self.batch is not None and self.batch % jax.device_count():
            raise BenchmarkError(
                f"--batch must be a multiple of the {jax.device_count()} devices, got {self.batch}"
            )
        full = CPU if jax.default_backend() == "cpu" else ACCELERATOR
        return (QUICK if self.quick else full).with_batch(self.batch)


def measure_workload(
    workload: Workload, peak: Peak, config: BenchmarkConfig
) -> Iterator[Measurement]:
    """Measure our implementation of a workload and its counterparts, in alternation."""
    case = workload.case
    ours = CompiledWorkload(workload)
    runners: dict[str, Runner] = {OURS: ours}
    failures: dict[str, str] = {}
    if config.against and case.has_peer:
        for by, make in torch_peers.counterparts(case).items():
            try:
                runners[by] = make()
            except Exception as error:  # whatever fails in PyTorch is a note in its row
                failures[by] = one_line(error)
    all_times = time_alternating(runners, config.repeats, config.seconds)
    yield measurement_of(
        case.row,
        case.title,
        case.images,
        all_times.pop(OURS),
        cost=ours.cost,
        peak=peak,
        dtype=workload.dtype,
        compile_seconds=ours.compile_seconds,
        peak_bytes_in_use=peak_bytes_in_use(),
    )
    for by, times in all_times.items():
        images, cost = runners[by].images, torch_peers.gpu_memory_cost()
        yield measurement_of(case.row, case.title, images, times, by=by, cost=cost)
    for by, note in failures.items():
        yield Measurement(case.row, case.title, by, case.images, note=note)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether JAX or PyTorch ran out of memory."""
    message = str(error).lower()
    memory = "resource_exhausted" in message or "out of memory" in message
    return isinstance(error, MemoryError) or memory


def one_line(error: Exception) -> str:
    """Format an error for a cell of the table."""
    message = " ".join(str(error).split())[:120].replace("|", "/")
    return "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {message}"


def measure_rows(config: BenchmarkConfig, scale: Scale, peak: Peak) -> Iterator[Measurement]:
    """Measure row by row; one that runs out of memory gets a note, and the others go on."""

    def or_note(row: RowName, measurements: Iterator[Measurement]) -> Iterator[Measurement]:
        try:
            yield from measurements
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            yield Measurement(row, "", OURS, scale.batches[row], note="out of memory")
        gc.collect()

    def measure_row(row: RowName) -> Iterator[Measurement]:
        for workload in WORKLOADS[row](scale):
            yield from or_note(row, measure_workload(workload, peak, config))

    for row in config.only:
        if row in WORKLOADS:
            yield from or_note(row, measure_row(row))
    if {"loader", "end_to_end"} & {*config.only}:
        with phantom_images(scale) as source:
            if "loader" in config.only:
                yield from measure_loader(scale, source, config.repeats, config.seconds)
            if "end_to_end" in config.only:
                yield from or_note("end_to_end", measure_end_to_end(scale, source))


def run_benchmark(config: BenchmarkConfig) -> tuple[dict[str, Any], list[Measurement]]:
    """Measure and print every row; return a description of the machine, and the rows."""
    if config.against:
        if missing := torch_peers.missing_packages():
            print(f"{missing} Only our own numbers follow.")
            config = replace(config, against=None)
        else:
            torch_peers.disable_preallocation()
    keep_memory()
    scale = config.scale()
    peak = peak_of(jax.local_devices()[0])
    machine = describe_machine(peak, torch=config.against is not None, quick=config.quick)
    rows = []
    for row in measure_rows(config, scale, peak):
        rate = f"{row.images_per_second:,.4g} images/s" if row.images_per_second else ""
        print(f"{row.row:11} {row.by:14} {row.title}: {rate} {row.note}".rstrip(), flush=True)
        rows.append(row)
    return machine, rows


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print the table and write it."""
    with exit_on_errors(BenchmarkError):
        config = tyro.cli(
            BenchmarkConfig,
            prog="python -m experiments.benchmark",
            args=arguments,
            description=__doc__,
        )
        machine, rows = run_benchmark(config)
    print(f"\n{markdown(machine, rows)}")
    if config.out is not None:
        write_benchmark(config.out, machine, rows)
        print(f"Written: {config.out / 'benchmark'}.md, .json")


if __name__ == "__main__":
    main()
