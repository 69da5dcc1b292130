"""Compare with the PyTorch references, number by number: `python -m experiments.parity --fixtures DIR`.

DIR holds outputs of the PyTorch implementations on weights that both sides generate by the same rule.
Every array of every file is compared, one line each. The command fails if one exceeds its tolerance, or
if nothing compares a file or an array.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.parity_checks.fixtures import Comparison, Fixtures, ReferenceArrays, failure
from experiments.parity_checks.formulas import (
    EVALUATION,
    compare_crfs,
    compare_evaluation,
    compare_heatmaps,
    compare_paths,
    compare_walks,
)
from experiments.parity_checks.networks import NetworkComparisons

DESCRIPTIONS = ("README.md", "index.json")
"""Files that describe the others."""


@dataclass(frozen=True)
class ParityConfig:
    """Compare this implementation with the references."""

    fixtures: Path
    """The folder of reference outputs."""
    only: str | None = None
    """Compare only files that match this pattern, such as `crf.npz` or `irnet_*`."""


Comparer = Callable[[Any], Iterator[Comparison]]


def comparers(networks: NetworkComparisons) -> dict[str, Comparer]:
    """Return the function that compares each kind of file, by file name pattern, cheap ones first."""
    return {
        "path_index.json": compare_paths,
        "evaluation": compare_evaluation,
        "heatmap_to_segmentation.npz": compare_heatmaps,
        "random_walk.npz": compare_walks,
        "crf.npz": compare_crfs,
        "densenet121.npz": networks.densenet,
        "deeplabv3plus_*.npz": networks.deeplab,
        "irnet_infer.npz": networks.irnet_inference,
        "irnet_r*.npz": networks.irnet_training,
    }


def compare_folder(fixtures: Fixtures, only: str | None) -> Iterator[Comparison]:
    """Compare all files of a folder, and report those that nothing compares."""
    by_pattern = comparers(NetworkComparisons(fixtures))
    patterns = list(by_pattern)
    comparable: list[tuple[int, str, Path]] = []
    for path in fixtures.folder.iterdir():
        if path.name in DESCRIPTIONS or not fnmatch(path.name, only or "*"):
            continue
        order = next((i for i, pattern in enumerate(patterns) if fnmatch(path.name, pattern)), None)
        if order is None:
            yield failure(path.name, "nothing compares this")
        else:
            comparable.append((order, path.name, path))
    for order, name, path in sorted(comparable):
        for comparison in compare_path(path, by_pattern[patterns[order]]):
            yield replace(comparison, name=f"{name}: {comparison.name}")
    if only is None:
        for network in sorted(fixtures.unused):
            yield failure(f"index.json: {network}", "no file compares this network")


def compare_path(path: Path, comparer: Comparer) -> Iterator[Comparison]:
    """Compare one file or folder; an error in it is a failure, and the others go on."""
    arrays = None
    try:
        if path.suffix == ".npz":
            arrays = ReferenceArrays(path)
        yield from comparer(arrays if arrays is not None else path)
    except Exception as error:  # a damaged file may raise anything
        yield failure(type(error).__name__, " ".join(str(error).split())[:300])
    for name in sorted(arrays.unread) if arrays is not None else ():
        yield failure(name, "nothing compares this array")
    if path.is_dir():
        files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        for name in sorted(files - set(EVALUATION)):
            yield failure(name, "nothing compares this file")


def print_summary(comparisons: list[Comparison], absent: list[str]) -> None:
    """Print a row for each file, the failures, and the kinds of files that are absent."""
    files: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        files.setdefault(comparison.name.partition(":")[0], []).append(comparison)
    print(f"\n{'file':32} {'compared':>8} {'failed':>6}   nearest to its tolerance")
    for name, group in files.items():
        wrong = sum(not c.ok for c in group)
        worst = max(group, key=lambda c: c.error / c.tolerance if c.tolerance else 0)
        near = f"{worst.error:.1e} of {worst.tolerance:.0e}  {worst.name.partition(': ')[2]}"
        print(f"{name:32} {len(group):8} {wrong:6}   {near if worst.tolerance else 'exact'}")
    if absent:
        print(f"Not in this folder: {', '.join(absent)}.")
    failed = [comparison for comparison in comparisons if not comparison.ok]
    for comparison in failed:
        print(comparison)
    print(f"{len(comparisons)} comparisons, {len(failed)} failed.")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, compare, and return the exit status."""
    config = tyro.cli(ParityConfig, args=arguments, description=__doc__)
    try:
        fixtures = Fixtures(config.fixtures)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"     {'name':80} {'error':>8} {'at most':>8}")
    comparisons = []
    # The references are in float32: on an accelerator, products in less would be compared with it.
    with jax.default_matmul_precision("highest"):
        for comparison in compare_folder(fixtures, config.only):
            print(comparison, flush=True)
            comparisons.append(comparison)
    names = [path.name for path in config.fixtures.iterdir()]
    patterns = comparers(NetworkComparisons(fixtures)) if config.only is None else {}
    absent = [pattern for pattern in patterns if not any(fnmatch(n, pattern) for n in names)]
    print_summary(comparisons, absent)
    return int(not comparisons or not all(comparison.ok for comparison in comparisons))


if __name__ == "__main__":
    sys.exit(main())
