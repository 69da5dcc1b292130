"""Mask formats: COCO run lengths, CheXlocalize's JSON, polygons, and bitmasks of ten pathologies.

The run lengths are COCO's compressed form in column-major order, as CheXlocalize ships them. The decoder
checks bytes, sizes and run sums before it allocates, where pycocotools returns uninitialized memory or
crashes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt16
from PIL import Image, ImageDraw

from chexseg_jax.pathologies import PATHOLOGIES, canonical

MAX_PIXELS = 2**28
"""The largest mask that is decoded: four times the largest detector in use."""


class MaskError(ValueError):
    """A mask, or a file of masks, is malformed."""


def decode_counts(counts: str) -> Int64[np.ndarray, "r"]:
    """Decode a COCO `counts` string to run lengths, background first.

    Raises:
        MaskError: a byte outside COCO's alphabet, a truncated number, or a run out of range.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise MaskError("run lengths are not ASCII") from None
    if codes.size == 0:
        raise MaskError("run lengths are empty")
    if codes.min() < 0 or codes.max() > 63:
        raise MaskError("run lengths contain a byte outside COCO's alphabet")
    last = codes & 32 == 0
    if not last[-1]:
        raise MaskError("run lengths end in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise MaskError("a run length takes more than 35 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    sign = codes[ends] & 16
    values -= np.where(sign, np.int64(1) << 5 * lengths, 0)
    # From the fourth number on, COCO stores the difference to the number two before it.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_counts(runs: Int64[np.ndarray, "r"]) -> str:
    """Encode run lengths, background first, as a COCO `counts` string."""
    values = runs.astype(np.int64)
    values[3:] = runs[3:] - runs[1:-2]
    codes = []
    for shift in range(0, 40, 5):
        group, rest = (values >> shift) & 31, values >> (shift + 5)
        done = np.where(group & 16, rest == -1, rest == 0)
        codes.append(np.where(done, group, group | 32))
        if done.all():
            break
    table = np.stack(codes, 1) + 48
    before: np.ndarray = np.cumsum(table < 80, 1) - (table < 80)
    return table[before == 0].astype(np.uint8).tobytes().decode("ascii")


def runs_of(rle: Any) -> Int64[np.ndarray, "r"]:
    """Decode `{"size": [h, w], "counts": str}` to column-major run lengths, background first.

    Raises:
        MaskError: the size is invalid or too large, or the runs do not fill it exactly.
    """
    height, width = size_of(rle)
    if not isinstance(rle.get("counts"), str | bytes):
        raise MaskError("run lengths lack their `counts` string")
    counts = rle["counts"]
    runs = decode_counts(counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts)
    if runs.min() < 0:
        raise MaskError("a run length is negative")
    if (runs > height * width).any() or runs.sum() != height * width:
        raise MaskError(f"run lengths do not add up to the {height} x {width} pixels of the mask")
    return runs


def area(runs: Int64[np.ndarray, "r"]) -> int:
    """Count the foreground pixels."""
    return int(runs[1::2].sum())


def shared_area(runs: Int64[np.ndarray, "r"], others: Int64[np.ndarray, "q"]) -> int:
    """Count the pixels in the intersection of two masks of one size, from run lengths alone.

    Both ends of every foreground run of `others` are looked up among the run ends of `runs`: the
    foreground pixels of `runs` before the second, less those before the first, are shared.
    """
    if runs.size < 2 or others.size < 2:
        return 0
    ends = np.cumsum(runs)
    foreground = runs.copy()
    foreground[::2] = 0
    before = np.cumsum(foreground)
    edges = np.cumsum(others)[: others.size // 2 * 2]
    index = np.searchsorted(ends, edges)
    inside = before[index] - (index & 1) * (ends[index] - edges)
    return int(inside[1::2].sum() - inside[::2].sum())


def contains(runs: Int64[np.ndarray, "r"], height: int, y: int, x: int) -> bool:
    """Return whether a pixel belongs to the mask, from run lengths alone."""
    return bool(np.searchsorted(np.cumsum(runs), x * height + y, side="right") & 1)


def decode_rle(rle: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Decode `{"size": [h, w], "counts": str}` to a mask.

    Raises:
        MaskError: as `runs_of`.
    """
    return fill_runs(runs_of(rle), *size_of(rle))


def fill_runs(runs: Int64[np.ndarray, "r"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Decode run lengths that fill (height, width), which `runs_of` has checked."""
    if runs.size > height * width // 64:  # noise: many short runs
        return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T
    pixels = np.zeros(height * width, bool)  # untouched pages take no memory
    ends = np.cumsum(runs).tolist()
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        pixels[start:end] = True
    return pixels.reshape(width, height).T


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Encode a mask as `{"size": [h, w], "counts": str}`."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [pixels.size]]))
    if pixels[0]:
        runs = np.concatenate([[0], runs])
    return {"size": list(mask.shape), "counts": encode_counts(runs)}


def size_of(rle: Any) -> tuple[int, int]:
    """Return the (height, width) of a mask, checked before anything is decoded."""
    size = rle.get("size") if isinstance(rle, Mapping) else None
    positive = isinstance(size, list | tuple) and all(type(n) is int and n > 0 for n in size)
    if size is None or not positive or len(size) != 2:
        raise MaskError(f"a mask's size must be two positive integers, got {size!r:.80}")
    if size[0] * size[1] > MAX_PIXELS:
        raise MaskError(f"a mask of {size[0]} x {size[1]} pixels exceeds the limit of {MAX_PIXELS}")
    return size[0], size[1]


def fill_polygons(
    contours: Iterable[Sequence[Sequence[float | int]]], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Rasterize the union of contours of [x, y] points, filled, with their outlines.

    By Pillow's polygon rule, which CheXlocalize's masks are made with.
    """
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    for contour in contours:
        points = [(float(x), float(y)) for x, y in contour]
        if len(points) > 1:
            pen.polygon(points, outline=1, fill=1)
        elif points:
            pen.point(points, fill=1)
    return np.asarray(canvas, bool)


def pack(masks: Bool[np.ndarray, "h w 10"]) -> UInt16[np.ndarray, "h w"]:
    """Pack ten masks into one bitmask, pathology k in bit k."""
    return (masks.astype(np.uint16) << np.arange(len(PATHOLOGIES), dtype=np.uint16)).sum(
        -1, dtype=np.uint16
    )


def unpack(bits: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 10"]:
    """Unpack the ten masks, 0 or 1, of a bitmask."""
    return ((bits[..., None] >> np.arange(len(PATHOLOGIES), dtype=np.uint16)) & 1).astype(np.uint8)


def unpack_plane(bits: UInt16[np.ndarray, "h w"], k: int) -> Bool[np.ndarray, "h w"]:
    """Unpack the mask of pathology k alone."""
    return (bits & np.uint16(1 << k)) != 0


def pack_rles(rles: Mapping[str, Mapping[str, Any]]) -> UInt16[np.ndarray, "h w"]:
    """Decode one image's run lengths by pathology to a bitmask; absent pathologies are empty.

    Raises:
        MaskError: an unknown pathology, masks of different sizes, no mask at all, or a bad mask;
            the message names the pathology.
    """
    bits: np.ndarray | None = None
    for name, rle in rles.items():
        pathology = canonical(name)
        if pathology not in PATHOLOGIES:
            raise MaskError(f"unknown pathology {name!r:.80}")
        try:
            mask = decode_rle(rle)
        except MaskError as error:
            raise MaskError(f"{name}: {error}") from None
        if bits is None:
            bits = np.zeros(mask.shape, np.uint16)
        if mask.shape != bits.shape:
            raise MaskError(
                f"{name}: size {mask.shape} differs from the {bits.shape} of the other masks"
            )
        bits |= mask.astype(np.uint16) << np.uint16(PATHOLOGIES.index(pathology))
    if bits is None:
        raise MaskError("no masks")
    return bits


def rles_of(bits: UInt16[np.ndarray, "h w"]) -> dict[str, dict[str, Any]]:
    """Encode all ten masks of a bitmask as run lengths by pathology, as CheXlocalize requires."""
    return {name: encode_rle(unpack_plane(bits, k)) for k, name in enumerate(PATHOLOGIES)}


def read_image_objects(path: Path) -> dict[str, dict[str, Any]]:
    """Read a CheXlocalize JSON file: an object by image id of objects by pathology name.

    Raises:
        MaskError: the file cannot be read, is not JSON, names a field twice, or has another shape; the
            message names the file and, where there is one, the image or the field.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise MaskError(f"{path}, field {twice!r:.80}: is there twice; delete one of the two")
        return named

    try:
        images = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except MaskError:
        raise
    except OSError as error:
        raise MaskError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{path}: not JSON ({error}); restore the file") from None
    if not isinstance(images, dict):
        raise MaskError(f"{path}: must be an object of images by id; restore the file")
    for image_id, entry in images.items():
        if not isinstance(entry, dict):
            raise MaskError(
                f"{path}: {image_id:.80}: must be an object of pathologies by name; restore the file"
            )
    return images
