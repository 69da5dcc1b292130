"""A folder of reference outputs: what it holds, what was read of it, and the weights it stands for.

Weights are drawn, not stored: every tensor from the folder's seed and its own name, so that two sides
which never met have the same network.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Line:
    """One comparison: how far ours is from the reference, and how far it may be."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; one that is no number never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        return (
            f"{verdict} {self.name:80} {self.error:8.1e} {self.tolerance:8.0e} {self.note}".rstrip()
        )


def failure(name: str, note: str) -> Line:
    """Returns the line of a comparison that could not be made."""
    return Line(name, float("inf"), 0.0, note)


def compare(
    name: str, ours: Any, reference: Any, tolerance: float, scale: float | None = None
) -> Line:
    """Compares numbers: the greatest difference, relative to `scale`.

    Without one, to the reference's greatest magnitude.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        return failure(name, f"ours has shape {a.shape}, the reference {b.shape}")
    if scale is None:
        scale = np.abs(b).max(initial=0)
    error = np.abs(a - b).max(initial=0) / (scale if scale > 0 else 1)
    return Line(name, float(error), tolerance)


def same(name: str, ours: Any, reference: Any, note: str = "") -> Line:
    """Compares what must be equal: the number of places where it is not."""
    a, b = np.asarray(ours), np.asarray(reference)
    if a.shape != b.shape:
        return failure(name, f"ours has shape {a.shape}, the reference {b.shape}")
    return Line(name, float((a != b).sum()), 0.0, note)


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one file, and which of them nobody has asked for yet."""

    def __init__(self, path: Path) -> None:
        """Reads a file of `numpy.savez`, without pickles."""
        self.name = path.name
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            self._arrays = {name: found[name] for name in found.files}
        self.unread = set(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise ValueError(f"the array {name} is missing; make the fixtures again")
        self.unread.discard(name)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def under(self, prefix: str) -> list[str]:
        """Returns what follows a prefix in the names that have it, in the file's order."""
        return [name.removeprefix(prefix) for name in self if name.startswith(prefix)]

    def cases(self) -> dict[str, list[str]]:
        """Returns the arrays of each case, for names such as `0/image`."""
        found: dict[str, list[str]] = {}
        for name in self:
            case, slash, rest = name.partition("/")
            if slash:
                found.setdefault(case, []).append(rest)
        return found


class Fixtures:
    """The folder: its seed, and the state dicts that its networks were filled with."""

    def __init__(self, folder: Path) -> None:
        """Reads the folder's `index.json`."""
        self.folder = folder
        path = folder / "index.json"
        try:
            index = json.loads(path.read_text())
            self.seed = int(index["seed"])
            self.kinds: dict[str, dict[str, Any]] = dict(index["state_dicts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: no index of fixtures ({error}); point at their folder"
            ) from None
        self.undrawn = set(self.kinds)

    def shapes(self, kind: str) -> dict[str, Any]:
        """Returns the shape of every tensor of one network, or the name it shares."""
        if kind not in self.kinds:
            raise ValueError(f"index.json has no state dict {kind}; make the fixtures again")
        self.undrawn.discard(kind)
        return self.kinds[kind]

    def state(self, kind: str) -> dict[str, np.ndarray]:
        """Returns the whole state dict of one network, aliases included."""
        drawn: dict[str, np.ndarray] = {}
        for key, shape in self.shapes(kind).items():
            drawn[key] = (
                drawn[shape["same_as"]] if isinstance(shape, dict) else self.draw(key, shape)
            )
        return drawn

    def aliases(self, kind: str) -> set[str]:
        """Returns the names that stand for another tensor."""
        return {key for key, shape in self.shapes(kind).items() if isinstance(shape, dict)}

    def draw(self, key: str, shape: list[int]) -> np.ndarray:
        """Returns one tensor, drawn from its name: near one for scales, He's scale for kernels."""
        generator = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
        normal = generator.standard_normal(shape).astype(np.float32)
        tenth = np.float32(0.1)
        if key.endswith("running_var"):
            return 1 + tenth * np.abs(normal)
        if key.endswith(("running_mean", "bias")):
            return tenth * normal
        if len(shape) == 1:
            return 1 + tenth * normal
        return normal * np.float32(np.sqrt(2 / np.prod(shape[1:])))
