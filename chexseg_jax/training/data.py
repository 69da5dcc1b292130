"""Data pipeline: letterbox, augment, mix expert masks with pseudo-masks, and batch.

A source is a random-access sequence of examples (`Source`). Every pipeline is a Grain `MapDataset`,
so data is a function of the step: `dataset[step]` is a batch, and resuming needs no iterator state.
Every process shuffles and mixes in the same way and reads its own rows of each batch, so a batch does
not depend on the number of processes. The release samples rho in tenths, which turns 0.85 into 0.8; here
any rho is exact.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import grain
import jax
import numpy as np
from grain.python import ReadOptions
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from chexseg_jax.images import letterbox, letterbox_masks

Example = dict[str, Any]

THREADS = max(2, min(16, os.cpu_count() or 2))
READ = ReadOptions(num_threads=THREADS, prefetch_buffer_size=max(8, THREADS))
"""Threads, not processes: decoding releases the GIL. Their number changes no batch."""


class BatchError(ValueError):
    """A batch that cannot be divided over the devices, or a source without examples."""


@runtime_checkable
class Source(Protocol):
    """Examples by index: `image_id`, `image` uint8 (h, w, 1), `labels` int8 (14,), optional `masks`.

    Images are as they were stored; `photometry`, if given, is what a network's input gets of them.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Example: ...


class Mapped:
    """Apply a function to a source's examples and cache the first `cache` of them that are read.

    Keep one object for the whole training, at least: expert images are few and are read in every
    validation, and decoding one at native size takes longer than training on it. Cached examples are
    returned as they are; do not modify their arrays.
    """

    def __init__(
        self, source: Source, function: Callable[[int, Example], Example], *, cache: int = 0
    ) -> None:
        self._source, self._function, self._cache_size = source, function, cache
        self._cache: dict[int, Example] = {}
        self._lock = threading.Lock()
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Return one example."""
        index = int(index)
        if index in self._cache:
            return self._cache[index]
        example = self._function(index, self._source[index])
        with self._lock:
            if len(self._cache) < self._cache_size:
                self._cache[index] = example
        return example


class Subset:
    """The examples of a source at the given indices."""

    def __init__(self, source: Source, indices: Sequence[int] | Int[np.ndarray, "n"]) -> None:
        self._source, self.indices = source, np.asarray(indices, np.int64)
        digest = hashlib.sha256(self.indices.tobytes()).hexdigest()[:12]
        self.fingerprint = f"{source.fingerprint}[{digest}]"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Return one example."""
        return self._source[int(self.indices[int(index)])]


def sample_indices(total: int, count: int | None, seed: int) -> Sequence[int]:
    """Sample `count` sorted indices below `total` without replacement; all of them for None."""
    if count is None or count >= total:
        return list(range(total))
    generator = np.random.default_rng((seed, total))
    return sorted(generator.choice(total, count, replace=False).tolist())


def network_input(example: Example, size: int) -> UInt8[np.ndarray, "s s 1"]:
    """Letterbox an example's image as every network sees it: adjusted by its `photometry`."""
    return letterbox(example["image"], size, example.get("photometry", "as-is"))


def letterboxed(source: Source, size: int, *, cache: int = 0) -> Mapped:
    """Letterbox the images of a source, and its masks if it has them; cache as `Mapped` does."""

    def transform(_: int, example: Example) -> Example:
        result: Example = {
            "image_id": example["image_id"],
            "sizes": np.array(example["image"].shape[:2], np.int32),
            "images": network_input(example, size),
            "labels": example["labels"],
        }
        if "masks" in example:
            result["masks"] = letterbox_masks(example["masks"], size)
        return result

    return Mapped(source, transform, cache=cache)


def augment(
    example: Example,
    generator: np.random.Generator,
    *,
    strength: float,
    exposure: float | None = None,
    gamma: float = 0.0,
) -> Example:
    """Zoom, shift and re-expose an example at random, and its masks and seeds with it.

    Never mirrored: the heart is on the left.

    Args:
        example: its images are letterboxed; masks and seeds are optional.
        generator: of the random numbers.
        strength: at 0.1 the zoom is within 10 % and the shift within 5 % of the image side.
        exposure: at 0.1 contrast is within 10 % and brightness within 5 % of white; `strength` for None.
        gamma: the exponent of the grey levels lies between 2^-gamma and 2^gamma.
    """
    exposure = strength if exposure is None else exposure
    size = example["images"].shape[0]
    zoom = 1 + strength * generator.uniform(-1, 1)
    dy, dx = strength / 2 * size * generator.uniform(-1, 1, 2)
    gain, bias = 1 + exposure * generator.uniform(-1, 1), 255 * exposure * generator.uniform(-1, 1)
    result = dict(example)
    pixels = _zoom_and_shift(example["images"], zoom, dy, dx, Image.Resampling.BILINEAR)
    levels: Float[np.ndarray, "256"] = np.arange(256, dtype=np.float32)
    if gamma:
        levels = 255 * (levels / 255) ** np.float32(2 ** (gamma * generator.uniform(-1, 1)))
    levels = (levels - 128) * gain + 128 + bias / 2
    levels[0] = 0  # padding stays black
    result["images"] = np.clip(levels, 0, 255).astype(np.uint8)[pixels]
    if "masks" in example:
        result["masks"] = _zoom_and_shift(example["masks"], zoom, dy, dx, Image.Resampling.NEAREST)
    if "seeds" in example:  # ignored beyond the image: -1 is stored as 255
        seeds = example["seeds"].astype(np.uint8)
        scale = seeds.shape[0] / size
        nearest = Image.Resampling.NEAREST
        seeds = _zoom_and_shift(seeds, zoom, dy * scale, dx * scale, nearest, fill=255)
        result["seeds"] = seeds.astype(np.int8)
    return result


def _zoom_and_shift(
    maps: UInt8[np.ndarray, "h w k"],
    zoom: float,
    dy: float,
    dx: float,
    resampling: Image.Resampling,
    fill: int = 0,
) -> UInt8[np.ndarray, "h w k"]:
    """Scale maps about their centre and shift them."""
    height, width = maps.shape[:2]
    centre_y, centre_x = height / 2, width / 2
    matrix = (
        *(1 / zoom, 0, centre_x - (centre_x + dx) / zoom),
        *(0, 1 / zoom, centre_y - (centre_y + dy) / zoom),
    )
    result = np.full_like(maps, fill)
    for k in range(maps.shape[-1]):
        plane = maps[..., k]
        if (plane != fill).any():
            result[..., k] = Image.fromarray(np.ascontiguousarray(plane)).transform(
                (width, height),
                Image.Transform.AFFINE,
                matrix,
                resample=resampling,
                fillcolor=fill,
            )
    return result


class _MixSelection:
    """For each element of a mix, its data set (0 pseudo, 1 expert) and its index there."""

    def __init__(self, rho: float, seed: int) -> None:
        self._rho, self._seed = rho, seed

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> tuple[int, int]:
        # The same index in either data set: each goes through its epochs at the pace of the mix.
        return int(np.random.default_rng((self._seed, index)).random() < self._rho), index


def mix(
    expert: grain.MapDataset | None, pseudo: grain.MapDataset | None, rho: float, seed: int
) -> grain.MapDataset:
    """Mix examples: each is expert with probability rho, else pseudo (paper §3.4).

    A pure function of (seed, index). At rho = 0 all are pseudo, at 1 all are expert, and the other data
    set may be None.

    Raises:
        ValueError: rho lies outside [0, 1], or a data set that it needs is None.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must lie in [0, 1], got {rho}")
    if rho == 0 and pseudo is not None:
        return pseudo
    if rho == 1 and expert is not None:
        return expert
    if expert is None or pseudo is None:
        raise ValueError(f"rho = {rho:g} needs both expert masks and pseudo-masks")
    return grain.MapDataset.select_from_datasets([pseudo, expert], _MixSelection(rho, seed))


def shuffled_repeated(
    source: Source,
    seed: int,
    *,
    strength: float = 0.0,
    exposure: float | None = None,
    gamma: float = 0.0,
) -> grain.MapDataset:
    """Repeat a source without end, reshuffled every epoch and augmented; the same in every process."""
    if not len(source):
        raise BatchError(f"{source.fingerprint} holds no examples to train on")
    dataset = grain.MapDataset.source(source)[:].seed(seed).shuffle().repeat()
    if not (strength or exposure or gamma):
        return dataset

    def transform(example: Example, generator: np.random.Generator) -> Example:
        return augment(example, generator, strength=strength, exposure=exposure, gamma=gamma)

    return dataset.random_map(transform)


class _ProcessRows:
    """Select the rows of every global batch that this process reads."""

    def __init__(self, elements: int, size: int) -> None:
        self._batches, self._size = elements // size, size
        self._local = size // jax.process_count()
        self._first = jax.process_index() * self._local

    def __len__(self) -> int:
        return self._batches * self._local

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, row = divmod(index, self._local)
        return 0, batch * self._size + self._first + row


def process_batches(dataset: grain.MapDataset, size: int) -> grain.MapDataset:
    """Batch a data set and return this process's rows of the batches of `size` examples.

    Only those rows are read. Mixing and augmentation depend on an element's global index.
    """
    check_divides(size, jax.device_count())
    rows = _ProcessRows(len(dataset), size)
    local = grain.MapDataset.select_from_datasets([dataset.map(_without_id)], rows)
    return local.batch(size // jax.process_count(), drop_remainder=True)


def check_divides(size: int, devices: int) -> None:
    """Check that every device gets as many examples of a batch.

    Raises:
        BatchError: it does not.
    """
    if size % devices:
        raise BatchError(
            f"a batch of {size} does not divide over {devices} devices; choose a batch size that is a "
            f"multiple of {devices}"
        )


def image_ids_of(dataset: grain.MapDataset, size: int, step: int) -> list[str]:
    """Return the image ids of one global batch."""
    return [str(dataset[step * size + row]["image_id"]) for row in range(size)]


def _without_id(example: Example) -> Example:
    """Drop the id, which no device can hold."""
    return {name: value for name, value in example.items() if name != "image_id"}


def ordered_batches(
    source: Source, size: int
) -> Iterator[tuple[dict[str, Shaped[np.ndarray, "b *s"]], int]]:
    """Yield every example once, in order: batches of `size`, the last one padded, and their counts."""
    dataset = grain.MapDataset.source(source).batch(size)
    for batch in dataset.to_iter_dataset(READ):
        count = len(next(iter(batch.values())))
        yield pad(batch, size), count


def pad(
    batch: Mapping[str, Shaped[np.ndarray, "n *s"]], size: int
) -> dict[str, Shaped[np.ndarray, "b *s"]]:
    """Pad a batch to `size` with copies of its first example."""
    missing = size - len(next(iter(batch.values())))
    return {
        name: np.concatenate([values, np.repeat(values[:1], missing, 0)]) if missing else values
        for name, values in batch.items()
    }
