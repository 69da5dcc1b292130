"""A benchmark's table, as Markdown and as JSON."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import write_json
from experiments.benchmarks.measurements import Measurement, ratios
from experiments.benchmarks.roofline import Peak
from experiments.run.versions import versions

HEAD = (
    *("row", "what", "by", "batch", "images/s", "ms a step", "least to greatest", "compiled in"),
    *("memory", "GFLOP", "of peak", "GB moved", "of peak", "note"),
)


def about(peak: Peak, *, torch: bool, quick: bool) -> dict[str, Any]:
    """Returns what was measured on, with what, and when."""
    device = jax.local_devices()[0]
    packages = ["jax", "jaxlib", "flax", "numpy"]
    packages += ["torch", "torchvision", "segmentation-models-pytorch"] if torch else []
    limits = (
        f"{number(peak.bfloat16, 1e12)} bfloat16 and {number(peak.float32, 1e12)} float32 TFLOP/s"
    )
    warning = {"quick": "tiny networks of ours; nothing follows from these numbers"}
    return {
        **(warning if quick else {}),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "cores": os.cpu_count(),
        "limits": f"{limits}, {number(peak.bandwidth, 1e9)} GB/s ({peak.source})",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(packages),
    }


def cells(row: Measurement) -> list[str]:
    """Returns a row's cells, empty where nothing is known."""
    spread = ""
    if row.least_milliseconds is not None:
        spread = f"{number(row.least_milliseconds)} to {number(row.greatest_milliseconds)}"
        spread += f" ({row.repeats})"
    return [
        *(row.row, row.name, row.by, str(row.images)),
        *(number(row.images_per_second), number(row.milliseconds), spread),
        number(row.compile_seconds, 1, " s"),
        number(row.memory_bytes, 1e9, " GB"),
        *(number(row.flops, 1e9), number(row.flops_share, 0.01, " %")),
        *(number(row.bytes_moved, 1e9), number(row.bandwidth_share, 0.01, " %")),
        row.note,
    ]


def number(value: float | None, unit: float = 1, suffix: str = "") -> str:
    """Returns a number of three digits in a unit."""
    if value is None:
        return ""
    scaled = value / unit
    return (f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}") + suffix


def markdown(about: Mapping[str, Any], rows: list[Measurement]) -> str:
    """Returns where and with what it was measured, the table, and the ratios."""
    lines = [f"- {name}: {told}" for name, told in about.items()]
    lines += ["", _line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(cells(row)) for row in rows]
    compared = ratios(rows)
    if compared:
        lines += ["", _line(("what", "against", "our images/s over theirs")), _line(["---"] * 3)]
        lines += [_line((c["name"], c["against"], f"{c['ratio']:.2f}")) for c in compared]
    return "\n".join(lines) + "\n"


def _line(some: Any) -> str:
    return f"| {' | '.join(some)} |"


def write(folder: Path, about: Mapping[str, Any], rows: list[Measurement]) -> None:
    """Writes `benchmark.md` and `benchmark.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "benchmark.md") as aside:
        aside.write_text(markdown(about, rows))
    content = {**about, "rows": [asdict(row) for row in rows], "ratios": ratios(rows)}
    write_json(folder / "benchmark.json", content)
