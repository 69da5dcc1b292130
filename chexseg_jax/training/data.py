"""From sources of examples to batches: frames, augmentation, and the mix of expert and pseudo-masks.

A source is a random-access sequence of examples (`Source`). Every pipeline is a Grain `MapDataset`,
so data is a function of the step: `dataset[step]` is a batch, and resuming needs no iterator state.
Every process shuffles and mixes alike and reads its own rows of each batch, so a batch is the same
whatever the number of processes. The release draws from tenths, which turns rho = 0.85 into 0.8; here
the draw is exact for any rho.
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
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from chexseg_jax.images import letterbox, letterbox_masks

Example = dict[str, Any]

THREADS = max(2, min(16, os.cpu_count() or 2))
READ = ReadOptions(num_threads=THREADS, prefetch_buffer_size=max(8, THREADS))
"""Threads, not processes: decoding releases the interpreter's lock. Their number changes no batch."""


class BatchError(ValueError):
    """A batch that cannot be divided over the devices, or an example source that has none."""


@runtime_checkable
class Source(Protocol):
    """Examples by index: `image_id`, `image` uint8 (h, w, 1), `labels` int8 (14,), perhaps `masks`."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Example: ...


class Mapped:
    """A source seen through a function; the last `keep` results stay in memory.

    Expert images are few and come again and again, and reading one at native size takes longer than
    training on it.
    """

    def __init__(
        self, source: Source, function: Callable[[int, Example], Example], *, keep: int = 0
    ) -> None:
        self._source, self._function, self._keep = source, function, keep
        self._kept: dict[int, Example] = {}
        self._lock = threading.Lock()
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Returns one example."""
        at = int(index)
        if at in self._kept:
            return self._kept[at]
        example = self._function(at, self._source[at])
        with self._lock:
            if len(self._kept) < self._keep:
                self._kept[at] = example
        return example


class Subset:
    """Some examples of a source, by index."""

    def __init__(self, source: Source, indices: Sequence[int] | Int[np.ndarray, "n"]) -> None:
        self._source, self.indices = source, np.asarray(indices, np.int64)
        chosen = hashlib.sha256(self.indices.tobytes()).hexdigest()[:12]
        self.fingerprint = f"{source.fingerprint}[{chosen}]"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Returns one example."""
        return self._source[int(self.indices[int(index)])]


def sample_indices(available: int, wanted: int | None, seed: int) -> Sequence[int]:
    """Returns which of the images take part: all, or as many as wanted, drawn by the seed."""
    if wanted is None or wanted >= available:
        return list(range(available))
    generator = np.random.default_rng((seed, available))
    return sorted(generator.choice(available, wanted, replace=False).tolist())


def letterboxed(source: Source, size: int, *, keep: int = 0) -> Mapped:
    """Returns a source whose images, and masks if it has them, lie in the letterbox."""

    def frame(_: int, example: Example) -> Example:
        shown: Example = {
            "image_id": example["image_id"],
            "sizes": np.array(example["image"].shape[:2], np.int32),
            "images": letterbox(example["image"], size),
            "labels": example["labels"],
        }
        if "masks" in example:
            shown["masks"] = letterbox_masks(example["masks"], size)
        return shown

    return Mapped(source, frame, keep=keep)


def augment(example: Example, generator: np.random.Generator, *, strength: float) -> Example:
    """Returns an example zoomed, moved and re-exposed at random; masks and seeds move along.

    Never mirrored: the heart is on the left. At strength 0.1 the zoom is within 10 %, the shift within
    5 % of the frame, and brightness and contrast within 10 %.
    """
    size = example["images"].shape[0]
    zoom = 1 + strength * generator.uniform(-1, 1)
    dy, dx = strength / 2 * size * generator.uniform(-1, 1, 2)
    gain, bias = 1 + strength * generator.uniform(-1, 1), 255 * strength * generator.uniform(-1, 1)
    moved = dict(example)
    pixels = _move(example["images"], zoom, dy, dx, Image.Resampling.BILINEAR)
    levels = (np.arange(256, dtype=np.float32) - 128) * gain + 128 + bias / 2
    levels[0] = 0  # what lies beyond the image stays black
    moved["images"] = np.clip(levels, 0, 255).astype(np.uint8)[pixels]
    if "masks" in example:
        moved["masks"] = _move(example["masks"], zoom, dy, dx, Image.Resampling.NEAREST)
    if "seeds" in example:  # beyond the frame nothing is known: -1 is stored as 255
        seeds = example["seeds"].astype(np.uint8)
        scale = seeds.shape[0] / size
        seeds = _move(seeds, zoom, dy * scale, dx * scale, Image.Resampling.NEAREST, fill=255)
        moved["seeds"] = seeds.astype(np.int8)
    return moved


def _move(
    maps: UInt8[np.ndarray, "h w k"],
    zoom: float,
    dy: float,
    dx: float,
    how: Image.Resampling,
    fill: int = 0,
) -> UInt8[np.ndarray, "h w k"]:
    """Returns maps scaled about their centre and shifted, in their own frame."""
    height, width = maps.shape[:2]
    centre_y, centre_x = height / 2, width / 2
    across = (1 / zoom, 0, centre_x - (centre_x + dx) / zoom)
    down = (0, 1 / zoom, centre_y - (centre_y + dy) / zoom)
    moved = np.full_like(maps, fill)
    for k in range(maps.shape[-1]):
        plane = maps[..., k]
        if (plane != fill).any():
            picture = Image.fromarray(np.ascontiguousarray(plane))
            affine = Image.Transform.AFFINE
            moved[..., k] = picture.transform(
                (width, height), affine, (*across, *down), resample=how, fillcolor=fill
            )
    return moved


class _Draws:
    """For each element of a mix, which source it comes from and its number there."""

    def __init__(self, rho: float, seed: int) -> None:
        self._rho, self._seed = rho, seed

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> tuple[int, int]:
        # Each source walks through its own epochs at the mix's pace: element i of either.
        return int(np.random.default_rng((self._seed, index)).random() < self._rho), index


def mix(
    expert: grain.MapDataset, pseudo: grain.MapDataset, rho: float, seed: int
) -> grain.MapDataset:
    """Returns examples that are each expert with probability rho, else pseudo (paper §3.4).

    A pure function of (seed, index); 0 is all pseudo, 1 all expert, exactly.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must lie in [0, 1], got {rho}")
    return grain.MapDataset.select_from_datasets([pseudo, expert], _Draws(rho, seed))


def shuffled_repeated(source: Source, seed: int, *, strength: float = 0.0) -> grain.MapDataset:
    """Returns a source shuffled anew every epoch, augmented, without end; alike in every process."""
    if not len(source):
        raise BatchError(f"{source.fingerprint} holds no examples to train on")
    dataset = grain.MapDataset.source(source)[:].seed(seed).shuffle().repeat()
    if not strength:
        return dataset

    def change(example: Example, generator: np.random.Generator) -> Example:
        return augment(example, generator, strength=strength)

    return dataset.random_map(change)


class _Rows:
    """Which elements this process reads: its rows of every batch of all processes."""

    def __init__(self, elements: int, size: int) -> None:
        self._batches, self._size = elements // size, size
        self._share = size // jax.process_count()
        self._first = jax.process_index() * self._share

    def __len__(self) -> int:
        return self._batches * self._share

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, row = divmod(index, self._share)
        return 0, batch * self._size + self._first + row


def process_batches(dataset: grain.MapDataset, size: int) -> grain.MapDataset:
    """Returns this process's rows of batches of `size` examples over all processes.

    Only they are read; an element's augmentation and source go by its number among all.
    """
    if size % jax.device_count():
        raise BatchError(
            f"a batch of {size} does not divide over {jax.device_count()} devices; "
            f"choose a multiple of {jax.device_count()}"
        )
    rows = _Rows(len(dataset), size)
    mine = grain.MapDataset.select_from_datasets([dataset.map(_arrays)], rows)
    return mine.batch(size // jax.process_count(), drop_remainder=True)


def image_ids_of(dataset: grain.MapDataset, size: int, step: int) -> list[str]:
    """Returns the names of the images in one batch, over all processes, of a data set."""
    return [str(dataset[step * size + row]["image_id"]) for row in range(size)]


def _arrays(example: Example) -> Example:
    """Returns what a device can hold of an example: all but its name."""
    return {name: value for name, value in example.items() if name != "image_id"}


def ordered_batches(
    source: Source, size: int
) -> Iterator[tuple[dict[str, Shaped[np.ndarray, "b *s"]], int]]:
    """Gives every example once, in order: batches of `size`, the last one padded, and their counts."""
    dataset = grain.MapDataset.source(source).batch(size)
    for batch in dataset.to_iter_dataset(READ):
        count = len(next(iter(batch.values())))
        yield pad(batch, size), count


def pad(
    batch: Mapping[str, Shaped[np.ndarray, "n *s"]], size: int
) -> dict[str, Shaped[np.ndarray, "b *s"]]:
    """Returns a batch filled up to `size` with copies of its first example."""
    missing = size - len(next(iter(batch.values())))
    return {
        name: np.concatenate([values, np.repeat(values[:1], missing, 0)]) if missing else values
        for name, values in batch.items()
    }
