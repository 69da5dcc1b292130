"""Read files of `torch.save`, without PyTorch and without executing a pickle.

A pickle is a program for a stack machine. The machine below knows only the opcodes that `torch.save`
writes. Of the names that a pickle may call, those that make tensors are understood, a few that hold no
weights become inert objects, and every other is refused. Both layouts are read: the zip archive, and the
plain stream from before PyTorch 1.6, which is that of CheXseg's own checkpoints and of torchvision's
DenseNet-121. Pickles may be of protocols 2 to 5.
"""

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from chexseg_jax.weights.file_kinds import kind_of_other_file

MAX_BYTES: Final = 2**33
"""The largest file that is read."""

MAX_PICKLE_BYTES: Final = 2**26

MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The number at the start of a stream from before PyTorch 1.6."""

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
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
        "builtins.set",
        "__builtin__.set",
    }
)
"""Names in checkpoints of PyTorch Lightning beside the weights; each becomes an `Inert`."""

# Opcodes with a constant, with an argument in `struct`'s notation, and with a number of items.
CONSTANTS: Final = {0x4E: None, 0x88: True, 0x89: False}
NUMBERS: Final = {0x4A: "<i", 0x4B: "<B", 0x4D: "<H", 0x47: ">d"}
STRINGS: Final = {0x58: "<I", 0x55: "<B", 0x54: "<I", 0x8C: "<B", 0x8D: "<Q"}
BYTES: Final = {0x42: "<I", 0x43: "<B", 0x8E: "<Q", 0x96: "<Q"}
PUTS: Final = {0x71: "<B", 0x72: "<I"}
GETS: Final = {0x68: "<B", 0x6A: "<I"}
TUPLES: Final = {0x29: 0, 0x85: 1, 0x86: 2, 0x87: 3}


class TorchFileError(ValueError):
    """A file that `torch.save` does not write, or that refers to more than tensors."""


@dataclass(frozen=True)
class Global:
    """A name in a pickle, as `module.name`; never looked up."""

    name: str


class Inert:
    """A placeholder for an object without weights."""


@dataclass(frozen=True)
class Storage:
    """The key, length and dtype of a buffer that tensors share."""

    key: str
    size: int
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Tensor:
    """A view of a storage whose numbers may not have been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def checked(cls, storage: Any, offset: Any, shape: Any, strides: Any) -> "Tensor":
        """Make a tensor that lies inside its storage."""
        typed = (
            isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
        )
        if not typed or len(shape) != len(strides) or len(shape) > 8:
            raise TorchFileError("a tensor is not made of a storage, a shape and strides")
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise TorchFileError("a tensor's offset, shape or strides are not natural numbers")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if count > storage.size or (count and last >= storage.size):
            raise TorchFileError(f"a tensor of shape {shape} reaches beyond its storage")
        return cls(storage, offset, shape, strides)

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tensor as a read-only view of its storage's numbers."""
        shape = self.shape
        if self.strides == tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))):
            return numbers[self.offset : self.offset + math.prod(shape)].reshape(shape)
        steps = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], shape, steps, writeable=False
        )


class Unpickler:
    """A stack machine for the pickles in `content`, which may follow one another.

    Attributes:
        position: the first byte that has not been read.
        storages: those that the pickles have referred to, by key.
    """

    def __init__(self, content: bytes):
        self.content, self.position = content, 0
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Run the next pickle and return its object.

        Raises:
            TorchFileError: the pickle is cut short, inconsistent, or refers to more than tensors.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            return self._run()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise TorchFileError(f"its pickle is damaged ({type(error).__name__})") from None

    def _run(self) -> Any:
        push = self._stack.append
        while True:
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                return self._pop()
            if code == 0x80:  # PROTO
                if self._number("<B") > 5:
                    raise TorchFileError("its pickle is of a protocol that torch.save does not use")
            elif code in CONSTANTS:
                push(CONSTANTS[code])
            elif code in NUMBERS:
                push(self._number(NUMBERS[code]))
            elif code in STRINGS:
                push(self._take(self._number(STRINGS[code])).decode())
            elif code in BYTES:
                push(self._take(self._number(BYTES[code])))
            elif code == 0x95:  # FRAME
                self._number("<Q")
            elif code == 0x8A:  # LONG1
                push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            elif code in PUTS:
                self._memo[self._number(PUTS[code])] = self._stack[-1]
            elif code == 0x94:  # MEMOIZE
                self._memo[len(self._memo)] = self._stack[-1]
            elif code in GETS:
                push(self._memo[self._number(GETS[code])])
            elif code == 0x28:  # MARK
                self._marks.append(len(self._stack))
            elif code in TUPLES:
                push(tuple(reversed([self._pop() for _ in range(TUPLES[code])])))
            elif code == 0x74:  # TUPLE
                push(tuple(self._pop_marked()))
            elif code == 0x7D:  # EMPTY_DICT
                push({})
            elif code in (0x5D, 0x8F):  # EMPTY_LIST, EMPTY_SET; no set holds weights
                push([])
            elif code == 0x91:  # FROZENSET
                push(self._pop_marked())
            elif code in (0x61, 0x65, 0x90):  # APPEND, APPENDS, ADDITEMS
                items = [self._pop()] if code == 0x61 else self._pop_marked()
                self._top(list).extend(items)
            elif code in (0x73, 0x75):  # SETITEM, SETITEMS
                items = [self._pop(), self._pop()][::-1] if code == 0x73 else self._pop_marked()
                _set_items(self._top(dict), items)
            elif code == 0x63:  # GLOBAL
                module, name = self._line(), self._line()
                push(Global(f"{module}.{name}"))
            elif code == 0x93:  # STACK_GLOBAL
                name, module = self._pop(), self._pop()
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise TorchFileError("its pickle names an object by something other than text")
                push(Global(f"{module}.{name}"))
            elif code in (0x52, 0x81):  # REDUCE, NEWOBJ
                arguments, function = self._pop(), self._pop()
                if not isinstance(function, Global) or not isinstance(arguments, tuple):
                    raise TorchFileError("its pickle calls an object that is not a name")
                push(_call(function, arguments))
            elif code == 0x62:  # BUILD
                self._pop()  # the state of an object without weights, or a state dict's metadata
                if not isinstance(self._stack[-1], Inert | dict):
                    raise TorchFileError("it sets the state of an object that has none")
            elif code == 0x51:  # BINPERSID
                push(self._storage(self._pop()))
            else:
                raise TorchFileError(
                    f"its pickle uses opcode {code:#04x}, which torch.save does not"
                )

    def _take(self, count: int) -> bytes:
        """Read the next bytes."""
        if count > len(self.content) - self.position:
            raise TorchFileError("its pickle is cut short")
        self.position += count
        return self.content[self.position - count : self.position]

    def _number(self, form: str) -> Any:
        """Read the next number, in `struct`'s notation."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        """Read the text up to the next line feed."""
        end = self.content.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise TorchFileError("its pickle is cut short")
        return self._take(end + 1 - self.position)[:-1].decode()

    def _pop(self) -> Any:
        """Pop the top of the stack, which must lie above the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise TorchFileError("its pickle takes from an empty stack")
        return self._stack.pop()

    def _pop_marked(self) -> list[Any]:
        """Pop everything above the last mark."""
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type) -> Any:
        """Return the top of the stack, which must be a list or a dictionary, without popping it."""
        if type(self._stack[-1]) is not kind:
            raise TorchFileError("its pickle adds items to an object that is not a container")
        return self._stack[-1]

    def _storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id."""
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


def _call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Return the result of a call in a pickle: a tensor, a dictionary, or an `Inert`."""
    if function.name == "torch._utils._rebuild_tensor_v2" and len(arguments) >= 4:
        return Tensor.checked(*arguments[:4])
    if function.name == "torch._utils._rebuild_parameter" and arguments:
        if isinstance(arguments[0], Tensor):
            return arguments[0]
        raise TorchFileError("a parameter is not a tensor")
    if function.name == "collections.OrderedDict" and not arguments:
        return {}
    if function.name in INERT:
        return Inert()
    raise TorchFileError(
        f"it asks for {function.name!r:.80}, which is refused; "
        "save the state dict alone with torch.save(model.state_dict(), FILE)"
    )


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Fill a dictionary from alternating keys and values."""
    if len(items) % 2:
        raise TorchFileError("its pickle has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a deeply nested tuple can take for ever.
        if not isinstance(key, str | int | float | None):
            raise TorchFileError("its pickle has a key that is neither text nor a number")
        target[key] = value


def read_torch(path: Path) -> Any:
    """Read the object that `torch.save` wrote, each tensor as a read-only array.

    Raises:
        TorchFileError: `torch.save` did not write the file; it is cut short, too large or inconsistent;
            or it refers to more than tensors and plain containers.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise TorchFileError(f"{path}: {size} bytes exceed the limit of {MAX_BYTES}")
    if kind := kind_of_other_file(path):
        raise TorchFileError(f"{path}: {kind}")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        return _read_stream(path.read_bytes())
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise TorchFileError(f"{path}: the archive is damaged ({error})") from None


def _read_archive(path: Path) -> Any:
    """Read a zip archive: a pickle, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = _checked_root(entries, len(archive.infolist()), path.stat().st_size)
        order = entries.get(root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise TorchFileError("its numbers are not little-endian")
        unpickler = Unpickler(archive.read(root + "data.pkl"))
        result = unpickler.load()
        numbers = {}
        for key, storage in unpickler.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise TorchFileError(f"storage {key!r:.80} is missing")
            if entry.file_size != storage.nbytes:
                raise TorchFileError(
                    f"storage {key!r:.80} has {entry.file_size} bytes, not {storage.nbytes}"
                )
            numbers[key] = np.frombuffer(archive.read(entry), storage.dtype)
    return _fill_tensors(result, numbers)


def _checked_root(entries: Mapping[str, zipfile.ZipInfo], count: int, size: int) -> str:
    """Return the top folder of an archive of `count` entries and `size` bytes, as torch writes it."""
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


def _read_stream(content: bytes) -> Any:
    """Read a stream: pickles of magic, version, system, object and storage keys; then the numbers."""
    unpickler = Unpickler(content)
    if unpickler.load() != MAGIC:
        raise TorchFileError(
            "it is neither torch's zip archive nor torch's stream; save model.state_dict() instead"
        )
    version, system, result, keys = (unpickler.load() for _ in range(4))
    if version != 1001 or not (isinstance(system, dict) and system.get("little_endian") is True):
        raise TorchFileError("its stream is of another version or byte order")
    storages, position = unpickler.storages, unpickler.position
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise TorchFileError("the list of storages does not match the tensors")
    numbers = {}
    for key in keys:
        storage = storages[key]
        end = position + 8 + storage.nbytes
        if end > len(content):
            raise TorchFileError(f"storage {key!r:.80} reaches beyond the end of the file")
        if int.from_bytes(content[position : position + 8], "little") != storage.size:
            raise TorchFileError(f"storage {key!r:.80} is not of the size its tensors say")
        numbers[key] = np.frombuffer(content, storage.dtype, storage.size, position + 8)
        position = end
    return _fill_tensors(result, numbers)


def _fill_tensors(result: Any, numbers: Mapping[str, np.ndarray]) -> Any:
    """Replace the tensors in an object's dictionaries by arrays.

    Those in lists and tuples, where optimizers have theirs, stay as they are.
    """
    queue, seen = [result], set[int]()
    while queue:
        item = queue.pop()
        if not isinstance(item, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        for key, value in item.items():
            if isinstance(value, Tensor):
                item[key] = value.view(numbers[value.storage.key])
        queue.extend(item.values())
    return result
