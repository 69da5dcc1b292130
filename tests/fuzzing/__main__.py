"""Damage files, read them, and print the outcomes: `python -m tests.fuzzing`.

A fault is a reader that dies, hangs, exceeds its memory, raises an undocumented error, does not name the
file, or accepts invalid content. There must be none.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tests.fuzzing.judging import MEMORY, SECONDS, fuzz
from tests.fuzzing.targets import TARGETS

COUNTS = {"pictures": 10_000, "masks": 5_000, "tables": 2_000, "weights": 1_000, "dicoms": 5_000}


def main() -> None:
    """Parse the flags, fuzz every kind of file and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for files that are faults")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    flags = parser.parse_args()
    figures: dict[str, dict] = {}
    print(f"limits: {SECONDS} s and {MEMORY >> 20} MiB more address space a file")
    print("kind       inputs accepted rejected kinds corpus worst s peak MiB faults", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in TARGETS.items():
            tally = fuzz(name, target, getattr(flags, name), flags.seed, folder)
            print(
                f"{name:10} {tally.inputs:6} {tally.accepted:8} {tally.rejected.total():8} "
                f"{len(tally.rejected):5} {tally.corpus:6} {tally.seconds:7.2f} "
                f"{tally.memory >> 20:8} {len(tally.faults):6}"
            )
            for kind, count in tally.rejected.most_common(4):
                print(f"    {count:6} {kind}")
            for fault in tally.faults[:40]:
                print(f"    FAULT {fault}", flush=True)
            figures[name] = vars(tally)
    if flags.out:
        flags.out.write_text(json.dumps(figures, indent=1))
    if any(figure["faults"] for figure in figures.values()):
        raise SystemExit("faults: see above")


if __name__ == "__main__":
    main()
