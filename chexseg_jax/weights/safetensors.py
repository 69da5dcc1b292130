"""The safetensors format, read and written with numpy: a length, a JSON header, and the numbers.

The header is not believed: lengths, shapes and ranges are checked before any tensor is made.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the format's own reader."""

DTYPES: Final[Mapping[str, np.dtype]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


class SafetensorsError(ValueError):
    """A file that breaks the safetensors format."""


def save_safetensors(
    path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name; the file appears whole or not at all."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key, tensor in state.items():
        if tensor.dtype not in names:
            raise SafetensorsError(f"{key}: {tensor.dtype} has no name in the format")
        start, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
    aside.replace(path)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a file, as read-only arrays, and its metadata.

    Raises:
        SafetensorsError: the header is no header, or does not fit the numbers that follow it.
    """
    content = path.read_bytes()
    try:
        return parse(content)
    except SafetensorsError as error:
        raise SafetensorsError(f"{path}: {error}") from None


def parse(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors and metadata in the bytes of a file."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise SafetensorsError("the header is longer than the file, so it is no safetensors file")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"the header is no JSON ({error!s:.80})") from None
    if not isinstance(header, dict):
        raise SafetensorsError("the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SafetensorsError("the metadata are not texts by name")
    tensors, ranges = {}, []
    for key, entry in header.items():
        dtype, shape, start, end = checked(key, entry)
        if end > len(content) - 8 - length:
            raise SafetensorsError(f"tensor {key!r:.80} reaches beyond the end of the file")
        flat = np.frombuffer(content, dtype, math.prod(shape), 8 + length + start)
        tensors[key] = flat.reshape(shape)
        ranges.append((start, end))
    ranges.sort()
    ends = [0, *(end for _, end in ranges)]
    if [start for start, _ in ranges] != ends[:-1] or ends[-1] != len(content) - 8 - length:
        raise SafetensorsError("the tensors overlap, or leave bytes that belong to none")
    return tensors, metadata


def checked(key: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns a tensor's type, shape and range of bytes, which agree."""
    match entry:
        case {"dtype": str(name), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if name not in DTYPES:
                raise SafetensorsError(f"tensor {key!r:.80} is of unknown type {name!r:.80}")
            if len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
                raise SafetensorsError(f"tensor {key!r:.80} has no proper shape")
            if not 0 <= start <= end or end - start != math.prod(shape) * DTYPES[name].itemsize:
                raise SafetensorsError(f"tensor {key!r:.80} has a shape that its bytes do not fill")
            return DTYPES[name], tuple(shape), start, end
    raise SafetensorsError(f"tensor {key!r:.80} lacks its dtype, shape or data_offsets")


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, in which no key may come twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SafetensorsError("the header has a key twice")
    return found
