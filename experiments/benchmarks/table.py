"""Benchmark measurements, and their table as Markdown and JSON."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jax

from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import write_json
from experiments.benchmarks.roofline import Cost, Peak
from experiments.benchmarks.timing import Times
from experiments.run.versions import versions

OURS: Final = "chexseg-jax"
NOT_COUNTED: Final = Cost()
HEADER: Final = (
    *("row", "what", "by", "batch", "images/s", "ms a step", "min to max", "compiled in"),
    *("memory", "GFLOP", "of peak", "GB moved", "of peak", "note"),
)


@dataclass(frozen=True)
class Measurement:
    """One implementation's numbers in one row; None where unknown. A failed row has only a note."""

    row: str
    title: str
    by: str
    images: int  # in a step
    milliseconds: float | None = None  # a step, the median
    min_milliseconds: float | None = None
    max_milliseconds: float | None = None
    repeats: int = 0
    images_per_second: float | None = None
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    peak_bytes_in_use: int | None = None
    flops: float | None = None  # a step, on one device
    flops_share: float | None = None  # of the device's peak
    bytes_moved: float | None = None
    bandwidth_share: float | None = None
    note: str = ""


def measurement_of(
    row: str,
    title: str,
    images: int,
    times: Times,
    *,
    by: str = OURS,
    cost: Cost = NOT_COUNTED,
    peak: Peak | None = None,
    dtype: Any = None,
    **more: Any,
) -> Measurement:
    """Combine times and a cost into a row, relative to the device's peak if that is given."""
    flops_share = bandwidth_share = None
    if peak is not None and cost.flops is not None:
        flops_share = cost.flops / times.median / peak.flops_per_second(dtype)
    if peak is not None and cost.bytes_moved is not None:
        bandwidth_share = cost.bytes_moved / times.median / peak.bandwidth
    return Measurement(
        row,
        title,
        by,
        images,
        milliseconds=1e3 * times.median,
        min_milliseconds=1e3 * times.minimum,
        max_milliseconds=1e3 * times.maximum,
        repeats=times.repeats,
        images_per_second=images / times.median,
        memory_bytes=cost.memory,
        flops=cost.flops,
        flops_share=flops_share,
        bytes_moved=cost.bytes_moved,
        bandwidth_share=bandwidth_share,
        **more,
    )


def speed_ratios(rows: list[Measurement]) -> list[dict[str, Any]]:
    """Return our images per second over each counterpart's, for the rows that have one."""
    ours = {row.title: row.images_per_second for row in rows if row.by == OURS}
    return [
        {"row": row.row, "title": row.title, "against": row.by, "ratio": rate / peer_rate}
        for row in rows
        if row.by != OURS and (peer_rate := row.images_per_second) and (rate := ours.get(row.title))
    ]


def describe_machine(peak: Peak, *, torch: bool, quick: bool) -> dict[str, Any]:
    """Return the device, its peaks, the date and the versions of packages."""
    device = jax.local_devices()[0]
    packages = ["jax", "jaxlib", "flax", "numpy"]
    packages += ["torch", "torchvision", "segmentation-models-pytorch"] if torch else []
    bfloat16, float32 = (format_number(rate, 1e12) for rate in (peak.bfloat16, peak.float32))
    bandwidth = format_number(peak.bandwidth, 1e9)
    limits = f"{bfloat16} bfloat16 and {float32} float32 TFLOP/s, {bandwidth} GB/s ({peak.source})"
    warning = {"quick": "tiny networks; these numbers say nothing about speed"}
    return {
        **(warning if quick else {}),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "cores": os.cpu_count(),
        "limits": limits,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(packages),
    }


def cells(row: Measurement) -> list[str]:
    """Format a measurement as a row of the table, with empty cells for unknown numbers."""
    spread = ""
    if row.min_milliseconds is not None:
        low, high = format_number(row.min_milliseconds), format_number(row.max_milliseconds)
        spread = f"{low} to {high} ({row.repeats})"
    return [
        *(row.row, row.title, row.by, str(row.images)),
        *(format_number(row.images_per_second), format_number(row.milliseconds), spread),
        format_number(row.compile_seconds, 1, " s"),
        format_number(row.memory_bytes, 1e9, " GB"),
        *(format_number(row.flops, 1e9), format_number(row.flops_share, 0.01, " %")),
        *(format_number(row.bytes_moved, 1e9), format_number(row.bandwidth_share, 0.01, " %")),
        row.note,
    ]


def format_number(value: float | None, unit: float = 1, suffix: str = "") -> str:
    """Format a number in a unit with three digits."""
    if value is None:
        return ""
    scaled = value / unit
    return (f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}") + suffix


def markdown(machine: Mapping[str, Any], rows: list[Measurement]) -> str:
    """Format the machine, the table and the ratios as Markdown."""

    def table(header: tuple[str, ...], body: list[list[str]]) -> list[str]:
        return ["", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))]

    lines = [f"- {name}: {value}" for name, value in machine.items()]
    lines += table(HEADER, [cells(row) for row in rows])
    if ratios := speed_ratios(rows):
        body = [[r["title"], r["against"], f"{r['ratio']:.2f}"] for r in ratios]
        lines += table(("what", "against", "our images/s over theirs"), body)
    return "\n".join(lines) + "\n"


def write_benchmark(folder: Path, machine: Mapping[str, Any], rows: list[Measurement]) -> None:
    """Write `benchmark.md` and `benchmark.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "benchmark.md") as aside:
        aside.write_text(markdown(machine, rows))
    content = {**machine, "rows": [asdict(row) for row in rows], "ratios": speed_ratios(rows)}
    write_json(folder / "benchmark.json", content)
