"""Kill runs, break their disks, resume, compare, and print a table: `python -m tests.killing`."""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from tests.killing import disks, saves, sigterm, stages


def main() -> None:
    """Parse the flags and run the tests that they select."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="in each stage")
    parser.add_argument("--saves", type=int, default=100, help="kills inside checkpoint writes")
    parser.add_argument("--sigterms", type=int, default=5, help="sent to a training stage")
    parser.add_argument(
        "--disks",
        type=int,
        default=0,
        help="runs of each stage on a full disk, and one on a read-only disk; as root",
    )
    parser.add_argument("--stages", nargs="*", default=stages.STAGES, choices=stages.STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="an empty folder; by default a temporary one")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    figures: dict[str, dict] = {}

    def record(name: str, row: dict) -> None:
        figures[name] = row
        if flags.out:
            flags.out.write_text(json.dumps(figures, indent=1))

    def print_row(name: str, counts: stages.KillCounts) -> None:
        record(name, dict(vars(counts)))
        times = counts.recoveries or [0.0]
        slowest, median = max(times), statistics.median(times)
        print(
            f"{name:12} {counts.kills:6} {counts.runs:6} {counts.compared:9} {median:7.1f} "
            f"{slowest:7.1f} {len(counts.mismatches):11} {' '.join(counts.mismatches)}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as temporary:
        base = (flags.workdir or Path(temporary)).absolute()
        base.mkdir(parents=True, exist_ok=True)
        print("stage         kills   runs  compared  median slowest  mismatches", flush=True)
        if flags.saves:
            print_row("saves", saves.kill_saves(flags.saves, base, rng))
        if (flags.stages and (flags.kills or flags.disks)) or flags.sigterms:
            last = max((*flags.stages, "classifier"), key=stages.STAGES.index)
            spans = stages.run_uninterrupted(base, last)
            print({name: round(span, 2) for name, span in spans.items()}, flush=True)
            if flags.sigterms:
                record(
                    "sigterm",
                    sigterm.stop_classifier(flags.sigterms, base, spans["classifier"], rng),
                )
                print("sigterm", json.dumps(figures["sigterm"]), flush=True)
            for stage in flags.stages if flags.kills else ():
                print_row(stage, stages.kill_stage(stage, flags.kills, base, spans[stage], rng))
            for stage in flags.stages if flags.disks else ():
                counts = disks.break_disk(stage, flags.disks, base, rng)
                record(f"disk {stage}", vars(counts))
                print(f"disk {stage}", json.dumps(vars(counts)), flush=True)
    if any(row.get("mismatches") for row in figures.values()):
        raise SystemExit("resumed runs differ from uninterrupted ones")


if __name__ == "__main__":
    main()
