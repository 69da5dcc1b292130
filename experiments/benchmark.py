"""How fast every stage is, here: `python -m experiments.benchmark [--against torch] [--out DIR]`.

Each row is warmed up and repeated; compiling is timed apart. Beside images a second stand the memory
and how much of what the device could do is used: operations against its peak, bytes moved against its
bandwidth, both by XLA's count or, where loops hide them, by hand. With `--against torch` PyTorch does
the same in this process, in turn with us. That needs `pip install torch torchvision
segmentation-models-pytorch`, and on a GPU memory for both:

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.benchmark --against torch --out benchmark

On a CPU batches are smaller than on an accelerator, and the table says how large they were.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import jax
import tyro

from chexseg_jax.runtime.cpu import keep_memory
from experiments.benchmarks.file_workloads import films, loading, whole
from experiments.benchmarks.measurements import OURS, Measurement, measured
from experiments.benchmarks.roofline import Peak, peak_in_use, peak_of
from experiments.benchmarks.table import about, markdown, write
from experiments.benchmarks.timing import Runner, take_turns
from experiments.benchmarks.workloads import (
    ACCELERATOR,
    CPU,
    QUICK,
    ROWS,
    Compiled,
    Row,
    Scale,
    Workload,
)
from experiments.run.cli import errors_to_exit_code_2


class BenchmarkError(ValueError):
    """A benchmark that cannot be as it is asked for."""


@dataclass(frozen=True)
class Config:
    """Measures every stage."""

    only: tuple[Row, ...] = ROWS
    """Which rows."""
    against: Literal["torch"] | None = None
    """Measure PyTorch's counterparts too."""
    batch: int | None = None
    """Images at once, in every row."""
    repeats: int = 20
    """Measurements of a row, at most."""
    seconds: float = 60.0
    """For the measurements of a row, compiling apart; one is always made."""
    out: Path | None = None
    """A folder for `benchmark.md` and `benchmark.json`."""
    quick: bool = False
    """Tiny networks and images: whether it runs, not how fast."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.seconds <= 0:
            raise BenchmarkError("--repeats and --seconds must be more than 0")
        if self.batch is not None and self.batch < 1:
            raise BenchmarkError(f"--batch must be at least 1, got {self.batch}")

    def scale(self) -> Scale:
        """Returns the sizes for this machine."""
        if self.batch is not None and self.batch % jax.device_count():
            raise BenchmarkError(
                f"--batch must be a multiple of the {jax.device_count()} devices, got {self.batch}"
            )
        full = CPU if jax.default_backend() == "cpu" else ACCELERATOR
        return (QUICK if self.quick else full).of_batch(self.batch)


BUILDERS: Final[dict[Row, Callable[[Scale], Iterator[Workload]]]] = {
    "classify": training_workloads.classifying,
    "localize": inference_workloads.localizing,
    "seed": inference_workloads.seeding,
    "relate": training_workloads.relating,
    "walk": inference_workloads.walking,
    "segment": training_workloads.segmenting,
    "predict": inference_workloads.predicting,
}
"""What makes the workloads of a row; the other rows begin with files."""


def compare(workload: Workload, peak: Peak, config: Config) -> Iterator[Measurement]:
    """Gives the rows of one workload: ours and, if asked for, theirs, measured in turn."""
    case = workload.case
    ours = Compiled(workload)
    runners: dict[str, Runner] = {OURS: ours}
    failed: dict[str, str] = {}
    if config.against and case.peer:
        for by, make in torch_peers.counterparts(case).items():
            try:
                runners[by] = make()
            except Exception as error:  # theirs, whatever it is: ours goes on
                failed[by] = one_line(error)
    times = take_turns(runners, config.repeats, config.seconds)
    for by, found in times.items():
        mine = by == OURS
        yield measured(
            case.row,
            case.name,
            runners[by].images,
            found,
            by=by,
            cost=ours.cost if mine else torch_peers.cost(),
            peak=peak if mine else None,
            dtype=workload.dtype,
            compile_seconds=ours.compile_seconds if mine else None,
            peak_bytes_in_use=peak_in_use() if mine else None,
        )
    for by, why in failed.items():
        yield Measurement(case.row, case.name, by, case.images, note=why)


def out_of_memory(error: Exception) -> bool:
    """Returns whether an error, of JAX or of PyTorch, is one of memory."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "resource_exhausted" in said or "out of memory" in said


def one_line(error: Exception) -> str:
    """Returns what an error says, in a cell."""
    said = " ".join(str(error).split())[:120].replace("|", "/")
    return "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {said}"


def rows_of(config: Config, scale: Scale, peak: Peak) -> Iterator[Measurement]:
    """Gives the rows one by one; one that does not fit in memory says so, and the others go on."""

    def guarded(row: Row, rows: Callable[[], Iterator[Measurement]]) -> Iterator[Measurement]:
        try:
            yield from rows()
        except Exception as error:
            if not out_of_memory(error):
                raise
            yield Measurement(row, "", OURS, scale.batches[row], note="out of memory")
        gc.collect()

    def workloads(row: Row) -> Iterator[Measurement]:
        for workload in BUILDERS[row](scale):
            yield from guarded(row, partial(compare, workload, peak, config))

    for row in config.only:
        if row in BUILDERS:
            yield from guarded(row, partial(workloads, row))
    if "loader" in config.only or "whole" in config.only:
        with films(scale) as source:
            if "loader" in config.only:
                yield from loading(scale, source, config.repeats, config.seconds)
            if "whole" in config.only:
                yield from guarded("whole", partial(whole, scale, source))


def benchmark(config: Config) -> tuple[dict[str, Any], list[Measurement]]:
    """Measures, a line for each row as it comes; returns what it was measured on, and the rows."""
    if config.against:
        if missing := torch_peers.missing():
            print(f"{missing} Only our own numbers follow.")
            config = Config(**{**vars(config), "against": None})
        else:
            torch_peers.share_memory()
    keep_memory()
    scale = config.scale()
    peak = peak_of(jax.local_devices()[0])
    told = about(peak, torch=config.against is not None, quick=config.quick)
    rows = []
    for row in rows_of(config, scale, peak):
        rate = f"{row.images_per_second:,.4g} images/s" if row.images_per_second else ""
        print(f"{row.row:9} {row.by:14} {row.name}: {rate} {row.note}".rstrip(), flush=True)
        rows.append(row)
    return told, rows


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, measures, prints the table and writes it."""
    with errors_to_exit_code_2(BenchmarkError):
        config = tyro.cli(
            Config, prog="python -m experiments.benchmark", args=arguments, description=__doc__
        )
        told, rows = benchmark(config)
    print(f"\n{markdown(told, rows)}")
    if config.out is not None:
        write(config.out, told, rows)
        print(f"Written: {config.out / 'benchmark'}.md, .json")


if __name__ == "__main__":
    main()
