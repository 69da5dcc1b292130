"""Equal to the references, number for number: `python -m experiments.parity --fixtures DIR`.

DIR holds outputs of the PyTorch implementations on weights that both sides draw by the same rule.
Every array in every file is compared, a line each, and the command fails if one differs by more than
its tolerance, or if a file or an array was there that nothing compared.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tyro

from experiments.parity_checks.fixtures import Arrays, Fixtures, Line, failure
from experiments.parity_checks.formulas import (
    EVALUATION,
    crfs,
    evaluation,
    heatmaps,
    path_index,
    walks,
)
from experiments.parity_checks.networks import Networks

DESCRIPTIONS = ("README.md", "index.json")
"""Files that describe the others."""


@dataclass(frozen=True)
class Settings:
    """Compares this implementation with the references."""

    fixtures: Path
    """The folder of reference outputs."""
    only: str | None = None
    """Compare only what matches this name, such as `crf.npz` or `irnet_*`."""


Comparer = Callable[[Any], Iterator[Line]]


def comparers(networks: Networks) -> dict[str, Comparer]:
    """Returns what compares a file, or the evaluation's folder, by the pattern of its name."""
    return {
        "path_index.json": path_index,
        "evaluation": evaluation,
        "heatmap_to_segmentation.npz": heatmaps,
        "random_walk.npz": walks,
        "crf.npz": crfs,
        "densenet121.npz": networks.densenet,
        "deeplabv3plus_*.npz": networks.deeplab,
        "irnet_infer.npz": networks.inference,
        "irnet_r*.npz": networks.irnet,
    }


def compared(fixtures: Fixtures, only: str | None) -> Iterator[Line]:
    """Compares a folder, cheap files first, and names what could not be compared."""
    kinds = comparers(Networks(fixtures))
    patterns = list(kinds)
    entries = [path for path in fixtures.folder.iterdir() if path.name not in DESCRIPTIONS]
    known: list[tuple[int, str, Path]] = []
    for path in entries:
        number = next((n for n, key in enumerate(patterns) if fnmatch(path.name, key)), None)
        if only is not None and not fnmatch(path.name, only):
            continue
        if number is None:
            yield failure(path.name, "nothing compares this")
        else:
            known.append((number, path.name, path))
    for number, name, path in sorted(known):
        for line in compared_file(path, kinds[patterns[number]]):
            yield replace(line, name=f"{name}: {line.name}")
    if only is None:
        for kind in sorted(fixtures.undrawn):
            yield failure(f"index.json: {kind}", "no file compares this network")


def compared_file(path: Path, comparer: Comparer) -> Iterator[Line]:
    """Compares one file or folder; what goes wrong with it is a line, and the others go on."""
    arrays = None
    try:
        if path.suffix == ".npz":
            arrays = Arrays(path)
        yield from comparer(arrays if arrays is not None else path)
    except Exception as error:  # whatever a broken file leads to
        yield failure(type(error).__name__, " ".join(str(error).split())[:300])
    for name in sorted(arrays.unread) if arrays is not None else ():
        yield failure(name, "nothing compares this array")
    if path.is_dir():
        files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        for name in sorted(files - set(EVALUATION)):
            yield failure(name, "nothing compares this file")


def summarise(lines: list[Line], absent: list[str]) -> None:
    """Prints a row for each file, what failed, and what there was none of."""
    files: dict[str, list[Line]] = {}
    for line in lines:
        files.setdefault(line.name.partition(":")[0], []).append(line)
    print(f"\n{'file':32} {'compared':>8} {'failed':>6}   nearest to its tolerance")
    for name, group in files.items():
        wrong = sum(not line.ok for line in group)
        worst = max(group, key=lambda line: line.error / line.tolerance if line.tolerance else 0)
        near = f"{worst.error:.1e} of {worst.tolerance:.0e}  {worst.name.partition(': ')[2]}"
        print(f"{name:32} {len(group):8} {wrong:6}   {near if worst.tolerance else 'exact'}")
    if absent:
        print(f"Not in this folder: {', '.join(absent)}.")
    failed = [line for line in lines if not line.ok]
    for line in failed:
        print(line)
    print(f"{len(lines)} comparisons, {len(failed)} failed.")


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, compares, and returns the exit status."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    try:
        fixtures = Fixtures(settings.fixtures)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"     {'name':80} {'error':>8} {'at most':>8}")
    lines = []
    for line in compared(fixtures, settings.only):
        print(line, flush=True)
        lines.append(line)
    names = [path.name for path in settings.fixtures.iterdir()]
    patterns = comparers(Networks(fixtures)) if settings.only is None else {}
    summarise(lines, [key for key in patterns if not any(fnmatch(name, key) for name in names)])
    return int(not lines or not all(line.ok for line in lines))


if __name__ == "__main__":
    sys.exit(main())
