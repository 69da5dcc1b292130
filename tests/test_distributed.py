"""One process of eight devices and two of four: the same command, the same numbers."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chexseg_jax.masks import pack_rles
from datasets.prepare import prepare_phantoms
from experiments.distributed import Processes
from experiments.settings import Config

ROOT = Path(__file__).parents[1]
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiling is nearly all that these runs do."""
SMALL = [
    "--preset=phantom",
    "--image-size=32",
    "--classify.network.kind=resnet",
    "--classify.network.width=8",
    "--classify.network.blocks",
    *"1111",
    "--classify.batch-size=8",
    "--classify.epochs=1",
    "--localize.batch-size=8",
    "--seeds.batch-size=8",
    "--relate.radius=3",
    "--relate.batch-size=8",
    "--label.batch-size=8",
    "--segment.width=16",
    "--segment.batch-size=8",
    "--segment.epochs=1",
    "--evaluate.batch-size=8",
]


def start(log: Path, devices: int, *flags: str) -> subprocess.Popen:
    """Starts one process of a run; what it says goes to a file."""
    with log.open("w") as said:
        return subprocess.Popen(
            [sys.executable, "tests/process.py", str(devices), *SMALL, *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": HASTY},
            stdout=said,
            stderr=said,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The work folders of one process and of two."""
    folder = tmp_path_factory.mktemp("distributed")
    prepare_phantoms(folder / "data", seed=17, train=40, valid=16, test=8, short_side=64)
    here = f"--data-dir={folder / 'data'}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pair = ["--distributed", f"--processes.coordinator={address}", "--processes.count=2"]
    pair += [here, f"--workdir={folder / 'two'}"]
    running = [start(folder / f"{i}.log", 4, *pair, f"--processes.index={i}") for i in (0, 1)]
    try:
        running.append(start(folder / "alone.log", 8, here, f"--workdir={folder / 'one'}"))
        codes = [process.wait(300) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert codes == [0, 0, 0], logs
    return folder / "one", folder / "two"


def stage(workdir: Path, name: str) -> Path:
    (folder,) = workdir.glob(f"{name}-*")
    return folder


def losses(workdir: Path, name: str) -> list[float]:
    lines = (stage(workdir, name) / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_every_stage_is_written_once_and_whole(runs):
    one, two = ({p.parent.name for p in run.glob("*/manifest.json")} for run in runs)
    assert len(one) == 8 and one == two
    assert not list(runs[1].rglob("*.part"))


@pytest.mark.parametrize("name", ["classify", "relate", "segment"])
def test_losses_agree(runs, name):
    one, two = (losses(run, name) for run in runs)
    assert len(one) >= 1
    np.testing.assert_allclose(two, one, rtol=1e-3)


def test_masks_agree(runs):
    one, two = (
        json.loads((stage(run, "evaluate") / "pred_segmentations.json").read_text()) for run in runs
    )
    assert one.keys() == two.keys() and len(one) == 8
    differing = [np.mean(pack_rles(one[i]) != pack_rles(two[i])) for i in one]
    assert np.mean(differing) < 0.01


def test_reports_agree(runs):
    one, two = (json.loads((stage(run, "evaluate") / "report.json").read_text()) for run in runs)
    for method, row in one["mean"].items():
        assert two["mean"][method]["iou"] == pytest.approx(row["iou"], abs=0.01), method


def test_tables_have_an_image_a_row(runs):
    for run in runs:
        path = stage(run, "evaluate") / "true_pos_only_False" / "iou_results_per_cxr.csv"
        with path.open() as file:
            names = [row["img_id"] for row in csv.DictReader(file)]
        assert len(names) == len(set(names)) == 8


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="go together"):
        Processes(coordinator="a:1")
    with pytest.raises(ValueError, match="must lie in"):
        Processes("a:1", 2, 2)
    with pytest.raises(ValueError, match="without --distributed"):
        Config(processes=Processes("a:1", 2, 1))
