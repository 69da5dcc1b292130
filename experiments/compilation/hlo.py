"""Read the collectives of a compiled function, and what a chip sends in them, from its HLO text."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

SENT: Final[Mapping[str, Callable[[int], float]]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is a part of its operand
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
"""Bytes that a chip sends at least, relative to the bytes of its result, in a group of n chips."""

SLICES: Final = "between slices"
"""Sends to other slices, through the hosts' network."""

_OPERATION: Final = re.compile(rf" = (.+?) ({'|'.join(SENT)})(-start)?\(")
_SEND: Final = re.compile(r" = (.+?) send\(.*_xla_megascale")
_ARRAY: Final = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collectives:
    """The collectives of one kind in a function; the body of a loop is counted once."""

    kind: str
    count: int
    size: float
    """Bytes of their results on one chip."""
    sent: float
    """Bytes that a chip sends in them, at least."""


def collectives_of(text: str, devices: int) -> list[Collectives]:
    """Return the collectives of a compiled function's HLO, by kind.

    Args:
        text: `compiled.as_text()`.
        devices: how many there are: a collective without groups is over all of them.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for line in text.splitlines():
        if operation := _OPERATION.search(line):
            shape, kind, start = operation.groups()
            size = _result_bytes(shape, kind, start is not None)
            found.setdefault(kind, []).append((size, size * SENT[kind](group_size(line, devices))))
        elif send := _SEND.search(line):
            size = _bytes(_ARRAY.findall(send[1])[:1])
            found.setdefault(SLICES, []).append((size, size))
    return [
        Collectives(kind, len(rows), sum(size for size, _ in rows), sum(sent for _, sent in rows))
        for kind, rows in found.items()
    ]


def _result_bytes(shape: str, kind: str, start: bool) -> float:
    """Return the bytes of a collective's result.

    An operation that starts one returns its operands too, except for an all-reduce; the start of a
    permutation also returns two numbers.
    """
    arrays = _ARRAY.findall(shape)
    if start and kind != "all-reduce":
        arrays = [array for array in arrays if array[1]]
        arrays = arrays[len(arrays) // 2 :]
    return _bytes(arrays)


def group_size(line: str, devices: int) -> int:
    """Return how many devices each group of a collective has, in any of HLO's notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices


def _bytes(arrays: list[tuple[str, str]]) -> float:
    """Return the bytes of arrays, given as types and sides; a predicate has one."""
    total = 0.0
    for dtype, sides in arrays:
        bits = re.match(r"[a-z]+(\d+)", dtype)
        width = int(bits[1]) / 8 if bits else 1
        total += width * math.prod(int(side) for side in sides.split(",") if side)
    return total
