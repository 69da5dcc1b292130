"""Tensors out of PyTorch's files, without PyTorch and without running what a file says.

PyTorch writes pickles, which may call anything. The interpreter here knows the opcodes that
`torch.save` uses and builds tensors, containers, numbers and strings; it refuses every other name.
Both layouts are read: the zip archive, and the plain stream from before PyTorch 1.6, which is that of
CheXseg's own checkpoints and of some of torchvision's.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

MAX_BYTES: Final = 2**33
"""The largest file that is read."""

MAX_PICKLE_BYTES: Final = 2**26

MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The number that opens a stream from before PyTorch 1.6."""

STORAGES: Final[Mapping[str, np.dtype]] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": jnp.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}

INERT: Final = frozenset(
    {
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
    }
)
"""What checkpoints of PyTorch Lightning hold beside weights; each becomes an empty `Inert`."""


class TorchFileError(ValueError):
    """A file that is not what `torch.save` writes, or that asks for more than tensors."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to; never looked up."""

    name: str


class Inert:
    """Stands for an object that holds no weights."""


@dataclass(frozen=True)
class Storage:
    """The place of a tensor's numbers: a key, how many, and of what type."""

    key: str
    size: int
    dtype: np.dtype


@dataclass(frozen=True)
class Tensor:
    """A tensor whose numbers may not have been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the tensor as a read-only view of its storage's numbers."""
        if self.strides == contiguous(self.shape):
            flat = numbers[self.offset : self.offset + math.prod(self.shape)]
            return flat.reshape(self.shape)
        steps = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, steps, writeable=False
        )


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides, in elements, of a C-ordered array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_torch(path: Path) -> Any:
    """Returns what `torch.save` wrote, each tensor as a read-only array.

    Raises:
        TorchFileError: the file is no such file, is cut short or too large, lies about a size, or
            refers to anything but tensors and plain containers.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise TorchFileError(f"{path}: {size} bytes exceed the limit of {MAX_BYTES}")
    try:
        if zipfile.is_zipfile(path):
            return read_archive(path)
        return read_stream(path.read_bytes())
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise TorchFileError(f"{path}: the archive is damaged ({error})") from None


def read_archive(path: Path) -> Any:
    """Returns the object in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise TorchFileError("two entries of the archive have one name")
        for entry in entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise TorchFileError(f"entry {entry.filename!r:.80} is compressed, torch's are not")
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise TorchFileError("the entries claim more bytes than the file has")
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise TorchFileError(
                "the archive holds no single `data.pkl`, so torch did not write it"
            )
        root = pickles[0].removesuffix("data.pkl")
        order = entries.get(root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise TorchFileError("its numbers are not little-endian")
        if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise TorchFileError("its pickle is too large to be one of weights")
        found, _ = unpickle(archive.read(pickles[0]), 0)

        def numbers(storage: Storage) -> np.ndarray:
            entry = entries.get(f"{root}data/{storage.key}")
            if entry is None:
                raise TorchFileError(f"storage {storage.key!r:.80} is missing")
            if entry.file_size != storage.size * storage.dtype.itemsize:
                raise TorchFileError(
                    f"storage {storage.key!r:.80} has {entry.file_size} bytes, "
                    f"not {storage.size} of {storage.dtype}"
                )
            return np.frombuffer(archive.read(entry), storage.dtype)

        return resolved(found, numbers)


def read_stream(content: bytes) -> Any:
    """Returns the object in a stream: magic, version, system, the object, keys, numbers."""
    magic, at = unpickle(content, 0)
    if magic != MAGIC:
        raise TorchFileError("it is neither torch's zip archive nor torch's stream")
    version, at = unpickle(content, at)
    system, at = unpickle(content, at)
    little = isinstance(system, dict) and system.get("little_endian") is True
    if version != 1001 or not little:
        raise TorchFileError("its stream is of another version or byte order")
    found, at = unpickle(content, at)
    keys, at = unpickle(content, at)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors_in(found)}
    if not isinstance(keys, list) or set(keys) != set(storages) or len(set(keys)) != len(keys):
        raise TorchFileError("the list of storages does not match the tensors")
    read: dict[str, np.ndarray] = {}
    for key in keys:
        storage = storages[key]
        end = at + 8 + storage.size * storage.dtype.itemsize
        if end > len(content):
            raise TorchFileError(f"storage {key!r:.80} reaches beyond the end of the file")
        if struct.unpack_from("<q", content, at) != (storage.size,):
            raise TorchFileError(f"storage {key!r:.80} is not of the size its tensors say")
        read[key] = np.frombuffer(content, storage.dtype, storage.size, at + 8)
        at = end
    return resolved(found, lambda storage: read[storage.key])


def tensors_in(found: Any) -> list[Tensor]:
    """Returns all tensors within containers, each once, without recursion."""
    tensors: list[Tensor] = []
    seen: set[int] = set()
    queue = [found]
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, list | tuple):
            queue.extend(item)
    sizes: dict[str, Storage] = {}
    for tensor in tensors:
        if sizes.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise TorchFileError(f"storage {tensor.storage.key!r:.80} has two sizes or types")
    return tensors


def resolved(found: Any, numbers: Callable[[Storage], np.ndarray]) -> Any:
    """Returns an object with its tensors as arrays; those in lists and tuples stay unread."""
    views: dict[int, np.ndarray] = {}
    storages: dict[str, np.ndarray] = {}
    for tensor in tensors_in(found):
        key = tensor.storage.key
        if key not in storages:
            storages[key] = numbers(tensor.storage)
        views[id(tensor)] = tensor.view(storages[key])
    if isinstance(found, Tensor):
        return views[id(found)]
    queue, seen = [found], set()
    while queue:
        item = queue.pop()
        if not isinstance(item, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        for key, value in item.items():
            item[key] = views.get(id(value), value)
        queue.extend(item.values())
    return found
