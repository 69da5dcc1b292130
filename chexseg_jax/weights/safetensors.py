"""Safetensors files, read and written with the package of that name.

Its readers for NumPy lack bfloat16 and those for JAX 64 bits, so that bytes are interpreted here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from chexseg_jax.runtime.atomic_write import atomic_write

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
    """A file that is no safetensors file, or a dtype that weights do not use."""


def write_safetensors(
    path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, atomically.

    Raises:
        SafetensorsError: a tensor has a dtype that weights do not use.
    """
    for key, tensor in state.items():
        if tensor.dtype not in DTYPES.values():
            raise SafetensorsError(f"{key}: weights are not stored as {tensor.dtype}")
    arrays = {key: np.ascontiguousarray(tensor) for key, tensor in state.items()}
    with atomic_write(path) as part:
        part.write_bytes(save(arrays, dict(metadata) if metadata else None))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors of a file, as read-only arrays, and its metadata.

    Raises:
        SafetensorsError: the file is damaged, or holds a dtype that weights do not use.
    """
    try:
        tensors = safetensors.deserialize(path.read_bytes())
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise SafetensorsError(
            f"{path}: no readable safetensors file ({error!s:.200}); fetch it again"
        ) from None
    arrays = {}
    for key, entry in tensors:
        if entry["dtype"] not in DTYPES:
            raise SafetensorsError(f"{path}: tensor {key!r:.80} is of type {entry['dtype']}")
        flat = np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]])
        arrays[key] = flat.reshape(entry["shape"])
    return arrays, metadata
