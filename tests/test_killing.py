import json
import subprocess
import sys

import numpy as np

from chexseg_jax.training.checkpoints import ITEMS, Checkpoints


def test_killed_runs_resume_to_the_same_bytes(tmp_path):
    out, stages = tmp_path / "figures.json", ("classifier", "cams")
    flags = ("--kills=1", "--saves=3", "--sigterms=0", "--seed=5", f"--out={out}", "--stages")
    run = subprocess.run(
        [sys.executable, "-m", "tests.killing", *flags, *stages], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(out.read_text())
    assert figures.keys() == {*stages, "saves"}
    assert not any(row["mismatches"] for row in figures.values())
    assert figures["saves"]["kills"] == 3 and all(figures[name]["kills"] for name in stages)


def test_a_partially_deleted_step_is_gone_at_the_end(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            items = {name: {"a": np.full(2, step)} for name in ITEMS}
            checkpoints.save(step, items, score=-abs(step - 2))
            checkpoints.best_score()
    # As Orbax leaves it, which deletes file by file.
    partial = tmp_path / "1" / "statistics" / "d" / "part"
    partial.parent.mkdir(parents=True)
    partial.touch()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.best_score() == {"best_step": 2, "score": 0}
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
