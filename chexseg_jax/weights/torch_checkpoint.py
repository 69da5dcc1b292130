"""Tensors out of PyTorch's files, without PyTorch and without running what a file says.

Of the names that a pickle may call, those that make tensors are understood, a few that hold no
weights become inert, and every other is refused. Both layouts are read: the zip archive, and the
plain stream from before PyTorch 1.6, which is that of CheXseg's own checkpoints and of torchvision's
DenseNet-121.
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


class PickleError(ValueError):
    """A pickle that is damaged or uses more than the opcodes of weights."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to, as `module.name`; never looked up."""

    name: str


@dataclass(frozen=True)
class Builder:
    """What a pickle's names mean to its reader.

    Attributes:
        call: from a name and its arguments to an object.
        load: from a persistent id to an object.
        build: told of the state of an object that `call` made.
    """

    call: Callable[[Global, tuple[Any, ...]], Any]
    load: Callable[[Any], Any]
    build: Callable[[Any, Any], None]


CONSTANTS: Final = {0x4E: None, 0x88: True, 0x89: False}
NUMBERS: Final = {0x4A: "<i", 0x4B: "<B", 0x4D: "<H", 0x47: ">d"}
STRINGS: Final = {0x58: "<I", 0x55: "<B", 0x54: "<I"}
PUTS: Final = {0x71: "<B", 0x72: "<I"}
GETS: Final = {0x68: "<B", 0x6A: "<I"}
TUPLES: Final = {0x29: 0, 0x85: 1, 0x86: 2, 0x87: 3}


def unpickle(content: bytes, start: int, builder: Builder) -> tuple[Any, int]:
    """Returns the object pickled at `start`, and where its pickle ends.

    Raises:
        PickleError: the pickle is cut short, inconsistent, or uses another opcode.
    """
    try:
        return Machine(content, start, builder).run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from None


class Machine:
    """The stack machine, in the middle of one pickle."""

    def __init__(self, content: bytes, start: int, builder: Builder):
        self.content, self.at, self.builder = content, start, builder
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        if count > len(self.content) - self.at:
            raise PickleError("its pickle is cut short")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> Any:
        """Returns the next number, in `struct`'s notation."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Returns the text up to the next line feed."""
        end = self.content.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise PickleError("its pickle is cut short")
        return self.take(end + 1 - self.at)[:-1].decode()

    def pop(self) -> Any:
        """Takes the top of the stack, which must lie above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("its pickle takes from an empty stack")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        """Takes all above the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def run(self) -> tuple[Any, int]:
        """Runs until the pickle stops; returns the object and where it ended."""
        push = self.stack.append
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.pop(), self.at
            if code == 0x80:  # PROTO
                if self.number("<B") > 3:
                    raise PickleError("its pickle is of a protocol that torch.save does not use")
            elif code in CONSTANTS:
                push(CONSTANTS[code])
            elif code in NUMBERS:
                push(self.number(NUMBERS[code]))
            elif code in STRINGS:
                push(self.take(self.number(STRINGS[code])).decode())
            elif code == 0x8A:  # LONG1
                push(int.from_bytes(self.take(self.number("<B")), "little", signed=True))
            elif code in PUTS:
                self.memo[self.number(PUTS[code])] = self.stack[-1]
            elif code in GETS:
                push(self.memo[self.number(GETS[code])])
            elif code == 0x28:  # MARK
                self.marks.append(len(self.stack))
            elif code in TUPLES:
                push(tuple(reversed([self.pop() for _ in range(TUPLES[code])])))
            elif code == 0x74:  # TUPLE
                push(tuple(self.pop_marked()))
            elif code == 0x7D:  # EMPTY_DICT
                push({})
            elif code == 0x5D:  # EMPTY_LIST
                push([])
            elif code in (0x61, 0x65):  # APPEND, APPENDS
                items = [self.pop()] if code == 0x61 else self.pop_marked()
                self.top(list).extend(items)
            elif code in (0x73, 0x75):  # SETITEM, SETITEMS
                items = [self.pop(), self.pop()][::-1] if code == 0x73 else self.pop_marked()
                self.set_items(self.top(dict), items)
            elif code == 0x63:  # GLOBAL
                module, name = self.line(), self.line()
                push(Global(f"{module}.{name}"))
            elif code in (0x52, 0x81):  # REDUCE, NEWOBJ
                arguments, called = self.pop(), self.pop()
                if not isinstance(called, Global) or not isinstance(arguments, tuple):
                    raise PickleError("its pickle calls what is no name")
                push(self.builder.call(called, arguments))
            elif code == 0x62:  # BUILD
                state = self.pop()
                self.builder.build(self.stack[-1], state)
            elif code == 0x51:  # BINPERSID
                push(self.builder.load(self.pop()))
            else:
                raise PickleError(f"its pickle uses opcode {code:#04x}, which torch.save does not")

    def top(self, kind: type) -> Any:
        """Returns the top of the stack, left there, which must be of a kind."""
        if type(self.stack[-1]) is not kind:
            raise PickleError("its pickle fills what is no container")
        return self.stack[-1]

    def set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        """Fills a dictionary from alternating keys and values."""
        if len(items) % 2:
            raise PickleError("its pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A nested tuple can take for ever to hash.
            if not isinstance(key, str | int | float | None):
                raise PickleError("its pickle has a key that is neither text nor a number")
            target[key] = value


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


class Inert:
    """Stands for an object that holds no weights."""


@dataclass(frozen=True)
class Storage:
    """The place of a tensor's numbers: a key, how many, and of what type."""

    key: str
    size: int
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The bytes that the numbers take."""
        return self.size * self.dtype.itemsize


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


class Reader:
    """What the names in one file mean, and the storages that it speaks of."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.builder = Builder(called, self.storage_of, ignored)

    def storage_of(self, identity: Any) -> Storage:
        """Returns the storage that a persistent id names."""
        match identity:
            case ("storage", Global(name), str(key), str(), int(size), *views):
                if name not in STORAGES:
                    raise TorchFileError(f"it has numbers of type {name!r:.80}, which is refused")
                if size < 0 or any(view is not None for view in views):
                    raise TorchFileError(f"storage {key!r:.80} is a view or of negative size")
                storage = Storage(key, size, STORAGES[name])
                if self.storages.setdefault(key, storage) != storage:
                    raise TorchFileError(f"storage {key!r:.80} has two sizes or types")
                return storage
        raise TorchFileError("a persistent id does not name a storage")


def called(name: Global, arguments: tuple[Any, ...]) -> Any:
    """Returns what a pickle's call makes: a tensor, a dictionary, or an `Inert`."""
    if name.name == "torch._utils._rebuild_tensor_v2" and len(arguments) >= 4:
        return checked_tensor(*arguments[:4])
    if name.name == "torch._utils._rebuild_parameter" and arguments:
        if isinstance(arguments[0], Tensor):
            return arguments[0]
        raise TorchFileError("a parameter is no tensor")
    if name.name == "collections.OrderedDict" and not arguments:
        return {}
    if name.name in INERT:
        return Inert()
    raise TorchFileError(
        f"it asks for {name.name!r:.80}, which is refused; save the state dict alone with torch.save"
    )


def checked_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Returns a tensor that is known to lie inside its storage."""
    whole = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not whole or len(shape) != len(strides) or len(shape) > 8:
        raise TorchFileError("a tensor is not made of a storage, a shape and strides")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise TorchFileError("a tensor's offset, shape or strides are not natural numbers")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise TorchFileError(f"a tensor of shape {shape} reaches beyond its storage")
    return Tensor(storage, offset, shape, strides)


def ignored(target: Any, state: Any) -> None:
    """Drops the state of an object without weights, and a state dict's own metadata."""
    if not isinstance(target, Inert | dict):
        raise TorchFileError("it sets the state of an object that has none")


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
    except (TorchFileError, PickleError) as error:
        raise TorchFileError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise TorchFileError(f"{path}: the archive is damaged ({error})") from None


def read_archive(path: Path) -> Any:
    """Returns the object in a zip archive: a pickle, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = checked_root(entries, len(archive.infolist()), path.stat().st_size)
        order = entries.get(root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise TorchFileError("its numbers are not little-endian")
        reader = Reader()
        found, _ = unpickle(archive.read(root + "data.pkl"), 0, reader.builder)
        numbers = {}
        for key, storage in reader.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise TorchFileError(f"storage {key!r:.80} is missing")
            if entry.file_size != storage.nbytes:
                raise TorchFileError(
                    f"storage {key!r:.80} has {entry.file_size} bytes, not {storage.nbytes}"
                )
            numbers[key] = np.frombuffer(archive.read(entry), storage.dtype)
    return resolved(found, numbers)


def checked_root(entries: Mapping[str, zipfile.ZipInfo], count: int, size: int) -> str:
    """Returns the folder of an archive of `count` entries and `size` bytes that torch wrote."""
    if len(entries) != count:
        raise TorchFileError("two entries of the archive have one name")
    for name, entry in entries.items():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise TorchFileError(f"entry {name!r:.80} is compressed, torch's are not")
    if sum(entry.file_size for entry in entries.values()) > size:
        raise TorchFileError("the entries claim more bytes than the file has")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TorchFileError("the archive holds no single `data.pkl`, so torch did not write it")
    if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise TorchFileError("its pickle is too large to be one of weights")
    return pickles[0].removesuffix("data.pkl")


def read_stream(content: bytes) -> Any:
    """Returns the object in a stream: magic, version, system, the object, keys, numbers."""
    reader = Reader()
    at, parts = 0, []
    for _ in range(5):
        part, at = unpickle(content, at, reader.builder)
        parts.append(part)
        if parts[0] != MAGIC:
            raise TorchFileError("it is neither torch's zip archive nor torch's stream")
    _, version, system, found, keys = parts
    if version != 1001 or not (isinstance(system, dict) and system.get("little_endian") is True):
        raise TorchFileError("its stream is of another version or byte order")
    storages = reader.storages
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise TorchFileError("the list of storages does not match the tensors")
    numbers = {}
    for key in keys:
        storage = storages[key]
        end = at + 8 + storage.nbytes
        if end > len(content):
            raise TorchFileError(f"storage {key!r:.80} reaches beyond the end of the file")
        if int.from_bytes(content[at : at + 8], "little") != storage.size:
            raise TorchFileError(f"storage {key!r:.80} is not of the size its tensors say")
        numbers[key] = np.frombuffer(content, storage.dtype, storage.size, at + 8)
        at = end
    return resolved(found, numbers)


def resolved(found: Any, numbers: Mapping[str, np.ndarray]) -> Any:
    """Returns an object with the tensors in its dictionaries as arrays.

    Lists and tuples, where an optimiser keeps its own, are left as they are.
    """
    queue, seen = [found], set[int]()
    while queue:
        item = queue.pop()
        if not isinstance(item, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        for key, value in item.items():
            if isinstance(value, Tensor):
                item[key] = value.view(numbers[value.storage.key])
        queue.extend(item.values())
    return found
