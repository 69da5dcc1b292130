"""One row of a benchmark, measured: rates, shares of what the device could do, and memory."""

from dataclasses import dataclass
from typing import Any, Final

from experiments.benchmarks.roofline import Cost, Peak
from experiments.benchmarks.timing import Times

OURS: Final = "chexseg-jax"
NO_COST: Final = Cost(None, None, None)


@dataclass(frozen=True)
class Measurement:
    """What one implementation of a row came to; None is unknown, and a row that failed says why."""

    row: str
    name: str
    by: str
    images: int  # a step
    milliseconds: float | None = None  # a step, the median
    least_milliseconds: float | None = None
    greatest_milliseconds: float | None = None
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


def measured(
    row: str,
    name: str,
    images: int,
    times: Times,
    *,
    by: str = OURS,
    cost: Cost = NO_COST,
    peak: Peak | None = None,
    dtype: Any = None,
    **more: Any,
) -> Measurement:
    """Returns a row: its times, and what its cost is to a device that has these limits."""
    share = peak is not None and cost.flops is not None
    carried = peak is not None and cost.moved is not None
    return Measurement(
        row,
        name,
        by,
        images,
        milliseconds=1e3 * times.median,
        least_milliseconds=1e3 * times.least,
        greatest_milliseconds=1e3 * times.greatest,
        repeats=times.repeats,
        images_per_second=images / times.median,
        memory_bytes=cost.memory,
        flops=cost.flops,
        flops_share=cost.flops / times.median / peak.rate(dtype) if share else None,  # type: ignore
        bytes_moved=cost.moved,
        bandwidth_share=cost.moved / times.median / peak.bandwidth if carried else None,  # type: ignore
        **more,
    )


def ratios(rows: list[Measurement]) -> list[dict[str, Any]]:
    """Returns our images a second over theirs, for each row that somebody else did too."""
    ours = {row.name: row for row in rows if row.by == OURS and row.images_per_second}
    return [
        {
            "row": row.row,
            "name": row.name,
            "against": row.by,
            "ratio": ours[row.name].images_per_second / row.images_per_second,  # type: ignore
        }
        for row in rows
        if row.by != OURS and row.images_per_second and row.name in ours
    ]
