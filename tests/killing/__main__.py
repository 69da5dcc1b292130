"""`python -m tests.killing`: kills, takes disks away, goes on, compares, and prints a table."""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from tests.killing import asking, disks, saves, stages


def main() -> None:
    """Reads the flags and does what they ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="in each stage")
    parser.add_argument("--saves", type=int, default=100, help="kills inside checkpoint writes")
    parser.add_argument("--sigterms", type=int, default=5, help="sent to a training stage")
    parser.add_argument(
        "--disks", type=int, default=0, help="full ones a stage, and a read-only one; as root"
    )
    parser.add_argument("--stages", nargs="*", default=stages.STAGES, choices=stages.STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="an empty folder; else a passing one")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    figures: dict[str, dict] = {}

    def keep(name: str, row: dict) -> None:
        figures[name] = row
        if asked.out:
            asked.out.write_text(json.dumps(figures, indent=1))

    def note(name: str, counted: stages.Counted) -> None:
        keep(name, dict(vars(counted)))
        times = counted.recoveries or [0.0]
        slow, usual = max(times), statistics.median(times)
        print(
            f"{name:12} {counted.kills:6} {counted.lives:6} {counted.compared:9} {usual:7.1f} "
            f"{slow:7.1f} {len(counted.mismatches):11} {' '.join(counted.mismatches)}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as passing:
        base = (asked.workdir or Path(passing)).absolute()
        base.mkdir(parents=True, exist_ok=True)
        print("stage         kills  lives  compared  median slowest  mismatches", flush=True)
        if asked.saves:
            note("saves", saves.torment(asked.saves, base, chance))
        if (asked.stages and (asked.kills or asked.disks)) or asked.sigterms:
            last = max((*asked.stages, "classifier"), key=stages.STAGES.index)
            spans = stages.unbroken(base, last)
            print({name: round(span, 2) for name, span in spans.items()}, flush=True)
            if asked.sigterms:
                keep("sigterm", asking.ask(asked.sigterms, base, spans["classifier"], chance))
                print("sigterm", json.dumps(figures["sigterm"]), flush=True)
            for stage in asked.stages if asked.kills else ():
                note(stage, stages.torment(stage, asked.kills, base, spans[stage], chance))
            for stage in asked.stages if asked.disks else ():
                refused = disks.torment(stage, asked.disks, base, chance)
                keep(f"disk {stage}", vars(refused))
                print(f"disk {stage}", json.dumps(vars(refused)), flush=True)
    if any(row.get("mismatches") for row in figures.values()):
        raise SystemExit("what was killed and went on differs from what was not")


if __name__ == "__main__":
    main()
