"""`python -m tests.killing`: kills, goes on, compares, and prints a table."""

import argparse
import json
import random
import tempfile
from pathlib import Path

from tests.killing import saves, stages
from tests.killing.digests import digests
from tests.killing.lives import begin, finish


def look(folder: Path) -> dict[str, str]:
    """Returns the digests of a folder, taken by a process of its own: this one never uses JAX."""
    out = folder.with_name(f"{folder.name}.digests")
    said, cache = folder.with_name("digests.log"), folder.with_name("cache-digests")
    if finish(begin(lambda: out.write_text(json.dumps(digests(folder))), said, cache)):
        raise SystemExit(said.read_text())
    return json.loads(out.read_text())


def main() -> None:
    """Reads the flags and does what they ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="in each stage")
    parser.add_argument("--saves", type=int, default=100, help="kills inside checkpoint writes")
    parser.add_argument("--stages", nargs="*", default=stages.STAGES, choices=stages.STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="an empty folder; else a passing one")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    figures: dict[str, dict] = {}

    def note(name: str, counted: stages.Counted) -> None:
        figures[name] = vars(counted) | {"recoveries": max(counted.recoveries, default=0.0)}
        row = figures[name]
        print(
            f"{name:12} {row['kills']:5} {row['lives']:5} {row['recoveries']:8.1f} s "
            f"{len(row['mismatches']):5} {' '.join(row['mismatches'])}",
            flush=True,
        )
        if asked.out:
            asked.out.write_text(json.dumps(figures, indent=1))

    with tempfile.TemporaryDirectory() as passing:
        base = (asked.workdir or Path(passing)).absolute()
        base.mkdir(parents=True, exist_ok=True)
        print("stage        kills lives recovery   mismatches", flush=True)
        if asked.saves:
            note("saves", saves.torment(asked.saves, base, chance, look))
            figures["sigterm"] = dict(saves.terminate(base, chance))
            print("sigterm", figures["sigterm"], flush=True)
        if asked.stages and asked.kills:
            spans = stages.unbroken(base / "whole", base)
            print({name: round(span, 2) for name, span in spans.items()}, flush=True)
            expected = look(base / "whole")
            for stage in asked.stages:
                note(
                    stage,
                    stages.torment(
                        stage,
                        asked.kills,
                        base / "whole",
                        base,
                        spans[stage],
                        chance,
                        look,
                        expected,
                    ),
                )
    if any(row.get("mismatches") for row in figures.values()):
        raise SystemExit("what was killed and went on differs from what was not")


if __name__ == "__main__":
    main()
