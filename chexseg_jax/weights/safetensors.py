"""Safetensors files, read and written with the package of that name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.weights.file_kinds import kind_of_other_file

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
"""The dtypes of weights; of others the package's support differs between its versions."""


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
    arrays = {key: np.asarray(tensor, order="C") for key, tensor in state.items()}
    with atomic_write(path) as part:
        # Not `save_file`: its errors are no OSError, and a full disk must be reported as one.
        part.write_bytes(save(arrays, dict(metadata) if metadata else None))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors of a file and its metadata.

    Raises:
        SafetensorsError: the file is damaged, or holds a dtype that weights do not use.
    """
    if kind := kind_of_other_file(path):
        raise SafetensorsError(f"{path}: {kind}")
    arrays = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():
                dtype = file.get_slice(key).get_dtype()
                if dtype not in DTYPES:
                    raise SafetensorsError(f"{path}: tensor {key!r:.80} is of type {dtype}")
                arrays[key] = file.get_tensor(key)
            return arrays, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise SafetensorsError(
            f"{path}: no readable safetensors file, or cut short ({error!s:.200}); fetch it again"
        ) from None
