"""Four processes of two devices write what one of eight does, through all stages.

    python -m pytest -n0 tests/with_processes/check_four_processes.py

Not part of the suite, which has two processes: pytest collects this file only when it is named. On a CPU
with other work, collectives may time out after 30 seconds.
"""

import json

import numpy as np
import pytest

from datasets.prepare import prepare_phantoms
from tests.test_distributed import ended, losses, said, stage, start, together

PROCESSES = 4
TRAININGS = {"irnet": ("classifier", "irnet"), "teacher": ("classifier",)}


@pytest.fixture(scope="module", params=TRAININGS)
def runs(request, tmp_path_factory):
    """The source of pseudo-masks, and the work folders of one process and of four."""
    folder = tmp_path_factory.mktemp(request.param)
    prepare_phantoms(folder / "data", seed=17, train=40, valid=16, test=8, short_side=64)
    flags = [f"--data-dir={folder / 'data'}", f"--pseudo={request.param}"]
    four = [*flags, *together(PROCESSES), f"--workdir={folder / 'four'}"]
    with ended() as running:
        running.append(start(folder / "alone.log", 8, *flags, f"--workdir={folder / 'one'}"))
        codes = [running[0].wait(900)]
        running += [
            start(folder / f"{i}.log", 2, *four, f"--processes.index={i}") for i in range(PROCESSES)
        ]
        codes += [process.wait(900) for process in running[1:]]
    assert codes == [0] * (1 + PROCESSES), said(folder)
    return request.param, folder / "one", folder / "four"


def test_every_stage_is_written_once_and_whole(runs):
    source, one, four = runs
    names = [{path.parent.name for path in run.glob("*/manifest.json")} for run in (one, four)]
    assert names[0] == names[1]
    assert any(name.startswith(f"pseudo_masks-{source}") for name in names[0])
    assert not list(four.rglob("*.part"))


def test_losses_agree(runs):
    source, one, four = runs
    for name in TRAININGS[source]:
        expected, found = (losses(stage(run, name)) for run in (one, four))
        np.testing.assert_allclose(found[:10], expected[:10], rtol=1e-5)
    for manifest in one.glob("segmenter-*/manifest.json"):  # a teacher is one too
        folder = manifest.parent
        np.testing.assert_allclose(losses(four / folder.name), losses(folder), rtol=1e-2)


def test_reports_agree(runs):
    _, *folders = runs
    one, four = (
        json.loads((stage(run, "evaluation") / "report.json").read_text()) for run in folders
    )
    assert four["n"] == one["n"] and four["mean"].keys() == one["mean"].keys()
    assert four["mean"]["prior"] == one["mean"]["prior"]
    for name, mean in one["mean"].items():
        assert four["mean"][name]["iou"] == pytest.approx(mean["iou"], abs=0.02), name
