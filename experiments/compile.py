"""Compile every function of a run ahead of time for the devices that it will have, without data.

    python -m experiments.compile --topology v5e:4x4 --preset chexpert
    python -m experiments.compile --topology v5e:2x2 --stages classifier --batch-per-chip 64 --largest

A slice of TPUs is named by generation and chips: v4 and v5p by three sides, v5e and v6e by two. That
needs the compiler of TPUs, which runs anywhere: `pip install 'chexseg-jax[tpu]'`. `--topology cuda` and
`cpu` take the devices at hand. Takes every flag of `experiments.chexseg`. Training steps are compiled
for all devices of the slice, inference functions for those of one host, as a run shards them.

The table has, for each function and on one chip: memory, operations, bytes moved, the collectives, and
the time that the chip's peak rates allow, which is a bound and no measurement. Compiling takes a minute
or more for each large network. Exit codes: 0, everything compiles and fits; 1, something does not, as
its row says; 2, invalid flags.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import tyro

from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.runtime.target import compiling_for
from chexseg_jax.training.signals import SIGNALS
from experiments.benchmarks.table import format_number
from experiments.compilation.compiled import Compilation, compile_function
from experiments.compilation.functions import functions_of
from experiments.compilation.hlo import SLICES
from experiments.compilation.slices import (
    Slice,
    TopologyError,
    open_slice,
    prepare_jax,
)
from experiments.run.cli import exit_on_errors
from experiments.run.config import Config, StageName, read_flags
from experiments.run.versions import versions

HEADER: Final = (
    *("stage", "function", "images a chip", "compiled in", "arguments", "scratch", "output"),
    *("aliased", "memory", "of the chip", "TFLOP", "GB moved", "collectives", "MB sent"),
    *("ms at least", "bound by", "images/s at most", "to read, a host", "largest batch", "note"),
)


@dataclass(frozen=True)
class CompileConfig:
    """What is compiled, and for what."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    topology: str = "v5e:2x2"
    """A slice such as v4:2x2x1, v5e:4x4, v5p:2x2x1 or v6e:2x2; or cpu or cuda, the devices at hand."""
    slices: int = 1
    """How many such slices work together (multislice)."""
    stages: tuple[StageName, ...] = get_args(StageName)
    """Whose functions."""
    functions: Literal["all", "training", "inference"] = "all"
    """Which of them."""
    batch_per_chip: int | None = None
    """Images of every batch on one chip; the settings' batch sizes, divided, if not given."""
    largest: bool = False
    """Find the largest batch that fits too, by several compilations of each function."""
    out: Path | None = None
    """A folder for `compile.md` and `compile.json`."""

    def __post_init__(self) -> None:
        if self.batch_per_chip is not None and self.batch_per_chip < 1:
            raise ValueError(f"--batch-per-chip must be at least 1, got {self.batch_per_chip}")
        if self.slices < 1:
            raise ValueError(f"--slices must be at least 1, got {self.slices}")


def compile_all(config: CompileConfig, target: Slice) -> Iterator[Compilation]:
    """Compile the functions that are asked for, one after another, with a line for each."""
    with compiling_for(target.platform):
        for function in functions_of(config.run, target):
            kind = "training" if function.is_training else "inference"
            if function.stage in config.stages and config.functions in ("all", kind):
                print(f"{function.stage}, {function.name} ...", end=" ", flush=True)
                with ended_by_signals():
                    row = compile_function(
                        function, config.batch_per_chip, target, largest=config.largest
                    )
                print(summary(row), flush=True)
                yield row


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End at once on a signal: a handler in Python would wait for the compiler, for minutes."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(row: Compilation) -> str:
    """Return one line of a compilation."""
    found = "" if row.largest is None else f"; at most {row.largest} images a chip"
    if row.memory is None:
        return f"{row.note}{found}"
    parts = [
        f"compiled in {row.compile_seconds:.0f} s",
        f"{format_number(row.memory, 1e9)} GB, {format_number(row.memory_share, 0.01)} % of a chip's",
        f"{format_number(row.seconds, 1e-3)} ms at least, bound by {row.bound}",
    ]
    return ", ".join(parts) + found


def cells(row: Compilation) -> list[str]:
    """Format a compilation as a row of the table, with empty cells for what is unknown."""
    kinds = [f"{kind.count} {kind.kind}" for kind in row.collectives]
    between = [kind.sent for kind in row.collectives if kind.kind == SLICES]
    inside = [kind.sent for kind in row.collectives if kind.kind != SLICES]
    sent = [format_number(sum(inside), 1e6)] if inside else []
    sent += [f"{format_number(sum(between), 1e6)} {SLICES}"] if between else []
    sizes = (row.arguments, row.scratch, row.outputs, row.aliased, row.memory)
    return [
        *(row.stage, row.function, str(row.images), format_number(row.compile_seconds, 1, " s")),
        *(format_number(size, 1e9, " GB") for size in sizes),
        *(format_number(row.memory_share, 0.01, " %"), format_number(row.flops, 1e12)),
        *(format_number(row.bytes_moved, 1e9), ", ".join(kinds), ", ".join(sent)),
        *(format_number(row.seconds, 1e-3), row.bound, format_number(row.images_per_second)),
        *(format_number(row.images_per_second_and_host), format_number(row.largest), row.note),
    ]


def describe_target(config: CompileConfig, target: Slice) -> dict[str, Any]:
    """Return the devices, their peaks, the date and the versions of packages."""
    peak, slices = target.peak, f"{config.slices} x " if config.slices > 1 else ""
    bfloat16, float32 = (format_number(rate, 1e12) for rate in (peak.bfloat16, peak.float32))
    limits = f"{bfloat16} bfloat16 and {float32} float32 TFLOP/s"
    limits += f", {format_number(peak.bandwidth, 1e9)} GB/s"
    if peak.interconnect:
        limits += f", {format_number(peak.interconnect, 1e9)} GB/s sent to other chips"
    hosts = target.training.size // target.inference.size
    return {
        "topology": f"{slices}{target.name}: {target.training.size} x {target.kind}, {hosts} hosts",
        "limits": f"{limits}, {format_number(target.memory, 1e9)} GB ({peak.source})",
        "preset": f"{config.run.preset}, {config.run.image_size} px",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(["jax", "jaxlib", "flax"] + ["libtpu"] * (target.platform == "tpu")),
    }


def write(folder: Path, target: dict[str, Any], rows: list[Compilation]) -> None:
    """Write `compile.md` and `compile.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "compile.md") as aside:
        aside.write_text(markdown(target, rows))
    write_json(folder / "compile.json", {**target, "rows": [*map(asdict, rows)]})


def markdown(target: dict[str, Any], rows: list[Compilation]) -> str:
    """Format the target and the table as Markdown."""
    lines = [f"- {name}: {value}" for name, value in target.items()]
    table = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in table)]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, compile, print the table and write it."""
    config = read_flags(
        CompileConfig,
        "compile",
        lambda preset: CompileConfig(run=preset),
        __doc__ or "",
        arguments,
    )
    with exit_on_errors(TopologyError, OSError):
        prepare_jax(config.topology)
        target = open_slice(config.topology, config.slices)
        described, rows = describe_target(config, target), list[Compilation]()
        for row in compile_all(config, target):
            rows.append(row)
            if config.out is not None:  # after each, as each may take minutes
                write(config.out, described, rows)
        print(f"\n{markdown(described, rows)}")
        if config.out is not None:
            print(f"Written: {config.out / 'compile'}.md, .json")
    if failed := [f"{row.stage}, {row.function}" for row in rows if row.memory is None]:
        sys.exit(f"{len(failed)} of {len(rows)} do not compile or do not fit: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
