"""The few opcodes of pickle that weights need, interpreted so that nothing is looked up or called.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever it
names. This one builds containers, numbers and strings; what a name or a persistent id stands for is
the caller's to say.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


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
