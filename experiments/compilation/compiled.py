"""Compile functions for a slice, and what the compiler says of them: memory, operations, collectives."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import jax

from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.training.data import BatchError
from experiments.benchmarks.roofline import Peak, cost_of
from experiments.compilation.functions import PipelineFunction
from experiments.compilation.hlo import SLICES, Collectives, collectives_of
from experiments.compilation.slices import Slice

UNIT: Final = 8
"""Images a chip: largest batches are multiples of it."""
HALVINGS: Final = 3
"""Compilations between the largest batch known to fit and the smallest known not to."""
LARGEST: Final = 4096
"""Images a chip, more than which no batch is tried."""


class DoesNotFit(RuntimeError):
    """A function that needs more memory than a device has."""


@dataclass(frozen=True)
class Compilation:
    """What a compiled function needs on one device; None where unknown. A failed one has only a note."""

    stage: str
    function: str
    images: int  # of a batch on one device
    devices: int
    compile_seconds: float | None = None
    arguments: int | None = None  # bytes
    scratch: int | None = None
    outputs: int | None = None
    aliased: int | None = None  # of arguments that are outputs too
    memory: int | None = None  # arguments, scratch and outputs, the aliased once
    memory_share: float | None = None  # of the device's
    largest: int | None = None  # images of a batch on one device that fits
    tried: tuple[int, ...] = ()  # batches of the search for it
    flops: float | None = None
    bytes_moved: float | None = None
    collectives: tuple[Collectives, ...] = ()
    seconds: float | None = None  # at the device's peak rates
    bound: str = ""  # what takes that long
    images_per_second: float | None = None  # of all devices, at those rates
    images_per_second_and_host: float | None = None  # that a training's hosts must read for it
    note: str = ""


def compile_function(
    function: PipelineFunction, images: int | None, target: Slice, *, largest: bool = False
) -> Compilation:
    """Compile a function, and others for the largest batch that fits if asked for.

    Args:
        function: the function.
        images: of a batch on one device; the settings' batch if None.
        target: the devices.
        largest: whether to search the largest batch.
    """
    batch = function.batch if images is None else images * function.devices
    row = Compilation(function.stage, function.name, batch // function.devices, function.devices)
    fit = True
    try:
        row = describe(row, function, target, batch)
    except DoesNotFit as error:
        row, fit = replace(row, note=f"{error}"), False
    except BatchError as error:
        return replace(row, note=f"{error}")
    except jax.errors.JaxRuntimeError as error:
        return replace(row, note=f"does not compile: {first_line(error)}")
    if not largest:
        return row

    def fits(images: int) -> bool:
        try:
            compile_batch(function, target, images * function.devices)
        except DoesNotFit:
            return False
        return True

    found, tried = search_largest(fits, row.images, known=fit, unit=UNIT * function.accumulate)
    return replace(row, largest=found, tried=tuple(tried))


def compile_batch(
    function: PipelineFunction, target: Slice, batch: int
) -> tuple[jax.stages.Compiled, float]:
    """Return a function compiled for a batch on all devices, and the seconds that took.

    Raises:
        BatchError: the batch does not divide over the devices.
        DoesNotFit: the compiler refuses it for want of memory, or it needs more than there is.
    """
    started = time.perf_counter()
    lowered = function.lower(batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_does_not_fit(function, first_line(error))) from None
    needed = cost_of(compiled).memory or 0
    if needed > target.memory:
        sizes = f"{needed / 1e9:.1f} GB of {target.memory / 1e9:.1f}"
        raise DoesNotFit(_does_not_fit(function, sizes))
    return compiled, time.perf_counter() - started


def describe(
    row: Compilation, function: PipelineFunction, target: Slice, batch: int
) -> Compilation:
    """Compile a function for a batch and fill in its row."""
    compiled, seconds = compile_batch(function, target, batch)
    sizes: Any = compiled.memory_analysis()
    cost = cost_of(compiled)
    flops, bytes_moved = cost.flops, cost.bytes_moved
    note = "a loop's body counts once" if function.has_loops else ""
    if function.cost:
        formula = function.cost(batch)
        flops = (formula.flops or 0) / function.devices
        bytes_moved = (formula.bytes_moved or 0) / function.devices
        note = "operations and bytes by formula"
    collectives = tuple(collectives_of(compiled.as_text() or "", function.devices))
    bounds = roofline(flops, bytes_moved, collectives, target.peak)
    bound = max(bounds, key=bounds.__getitem__) if bounds else ""
    rate = batch / bounds[bound] if bounds else None
    hosts = target.training.size // target.inference.size
    return replace(
        row,
        compile_seconds=seconds,
        arguments=sizes.argument_size_in_bytes,
        scratch=sizes.temp_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        memory=cost.memory,
        memory_share=(cost.memory or 0) / target.memory,
        flops=flops,
        bytes_moved=bytes_moved,
        collectives=collectives,
        seconds=bounds.get(bound),
        bound=bound,
        images_per_second=rate,
        images_per_second_and_host=rate / hosts if rate and function.is_training else None,
        note=note,
    )


def roofline(
    flops: float | None,
    bytes_moved: float | None,
    collectives: tuple[Collectives, ...],
    peak: Peak,
) -> dict[str, float]:
    """Return the seconds that each resource takes at its peak rate, where both are known."""
    sent = sum(kind.sent for kind in collectives if kind.kind != SLICES)
    amounts = {
        "operations": (flops, peak.flops_per_second(compute_dtype())),
        "memory": (bytes_moved, peak.bandwidth),
        "collectives": (sent, peak.interconnect),
    }
    return {name: amount / rate for name, (amount, rate) in amounts.items() if amount and rate}


def search_largest(
    fits: Callable[[int], bool], images: int, *, known: bool, unit: int = UNIT
) -> tuple[int, list[int]]:
    """Return the largest batch that fits, 0 if none does, after a few attempts; and those tried.

    Args:
        fits: whether a batch on one device fits.
        images: a batch that does or does not.
        known: whether it does.
        unit: what batches are multiples of.
    """
    tried: list[int] = []

    def attempt(images: int) -> bool:
        tried.append(images)
        return fits(images)

    fitting, too_large = (images, 0) if known else (0, images)
    while not too_large:
        double = max(unit, 2 * fitting // unit * unit)
        if double > LARGEST:
            return fitting, tried
        if attempt(double):
            fitting = double
        else:
            too_large = double
    while not fitting and too_large > unit:
        half = max(unit, too_large // 2 // unit * unit)
        if attempt(half):
            fitting = half
        else:
            too_large = half
    for _ in range(HALVINGS):
        middle = max((fitting + too_large) // 2 // unit, fitting // unit + 1) * unit
        if not fitting or middle >= too_large:
            break
        if attempt(middle):
            fitting = middle
        else:
            too_large = middle
    return fitting, tried


def first_line(error: Exception) -> str:
    """Return what XLA says of an error, without the operations that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[0].split())[:300].replace("|", "/").rstrip(".")


def _does_not_fit(function: PipelineFunction, sizes: str) -> str:
    remedy = f"choose a smaller {function.flag} (or --batch-per-chip)"
    if function.is_training:
        remedy += f", or {function.flag.replace('batch-size', 'accumulate')} 2 for the same batch"
    return f"does not fit: {sizes}; {remedy}"
