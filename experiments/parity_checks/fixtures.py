"""Reference fixtures: their arrays, the weights of their networks, and single comparisons.

Weights are generated, not stored: every tensor from the folder's seed and its own name, so that both
implementations have the same network.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """The error of one quantity relative to the reference, and its tolerance."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        numbers = f"{self.error:8.1e} {self.tolerance:8.0e}"
        return f"{verdict} {self.name:80} {numbers} {self.note}".rstrip()


def failure(name: str, note: str) -> Comparison:
    """Return the failure of a comparison that could not be made."""
    return Comparison(name, float("inf"), 0.0, note)


def compare_values(
    name: str, ours: Any, reference: Any, tolerance: float, scale: float | None = None
) -> Comparison:
    """Compare numbers by their maximum difference, relative to `scale`.

    By default the scale is the reference's maximum magnitude.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        return failure(name, f"ours has shape {a.shape}, the reference {b.shape}")
    if scale is None:
        scale = np.abs(b).max(initial=0)
    error = np.abs(a - b).max(initial=0) / (scale if scale > 0 else 1)
    return Comparison(name, float(error), tolerance)


def compare_exactly(name: str, ours: Any, reference: Any, note: str = "") -> Comparison:
    """Compare arrays that must be equal; the error is the number of different elements."""
    a, b = np.asarray(ours), np.asarray(reference)
    if a.shape != b.shape:
        return failure(name, f"ours has shape {a.shape}, the reference {b.shape}")
    return Comparison(name, float((a != b).sum()), 0.0, note)


class ReferenceArrays(Mapping[str, np.ndarray]):
    """The arrays of one file; `unread` holds the names of those not yet accessed."""

    def __init__(self, path: Path) -> None:
        """Read a file of `numpy.savez`, without pickles."""
        self.name = path.name
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            self._arrays = {name: content[name] for name in content.files}
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

    def suffixes(self, prefix: str) -> list[str]:
        """Return the rest of each name that starts with a prefix, in the file's order."""
        return [name.removeprefix(prefix) for name in self if name.startswith(prefix)]

    def cases(self) -> dict[str, list[str]]:
        """Return the names of each case's arrays, such as `image` of `0/image`."""
        cases: dict[str, list[str]] = {}
        for name in self:
            case, slash, rest = name.partition("/")
            if slash:
                cases.setdefault(case, []).append(rest)
        return cases


class Fixtures:
    """A folder of fixtures: its seed and the state dicts of its networks."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's `index.json`."""
        self.folder = folder
        path = folder / "index.json"
        try:
            index = json.loads(path.read_text())
            self.seed = int(index["seed"])
            self.networks: dict[str, dict[str, Any]] = dict(index["state_dicts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: no index of fixtures ({error}); point at their folder"
            ) from None
        self.unused = set(self.networks)

    def shapes(self, network: str) -> dict[str, Any]:
        """Return the shape of every tensor of a network, or {"same_as": name} of a shared one."""
        if network not in self.networks:
            raise ValueError(f"index.json has no state dict {network}; make the fixtures again")
        self.unused.discard(network)
        return self.networks[network]

    def state_dict(self, network: str) -> dict[str, np.ndarray]:
        """Return the complete state dict of a network, with shared tensors."""
        tensors: dict[str, np.ndarray] = {}
        for key, shape in self.shapes(network).items():
            shared = isinstance(shape, dict)
            tensors[key] = tensors[shape["same_as"]] if shared else self.random_tensor(key, shape)
        return tensors

    def aliases(self, network: str) -> set[str]:
        """Return the names of shared tensors."""
        return {key for key, shape in self.shapes(network).items() if isinstance(shape, dict)}

    def random_tensor(self, key: str, shape: list[int]) -> np.ndarray:
        """Return a tensor from the seed and its name: near one for scales, He normal for kernels."""
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
