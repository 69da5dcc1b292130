"""One process of eight devices and two of four: the same command, the same numbers, to the report.

One of the two receives SIGTERM in the first training, and both resume; one is killed in the last, JAX
aborts the other, and both are started again.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.stage_folder import StageFolder
from datasets.prepare import prepare_phantoms
from experiments.run.cluster import Processes
from experiments.run.config import Config

ROOT = Path(__file__).parents[1]
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiling is nearly all that these runs do."""
SMALL = [
    "--preset=phantom",
    "--image-size=32",
    "--classifier.network.kind=resnet",
    "--classifier.network.width=8",
    "--classifier.network.blocks",
    *"1111",
    "--classifier.batch-size=8",
    "--classifier.epochs=6",
    "--classifier.every=3",
    "--cams.batch-size=8",
    "--seeds.batch-size=8",
    "--irnet.radius=3",
    "--irnet.batch-size=8",
    "--pseudo-masks.batch-size=8",
    "--segmenter.width=8",
    "--segmenter.batch-size=8",
    "--segmenter.epochs=1",
    "--evaluation.batch-size=8",
    "--rho=0.9",
    "--pseudo=irnet",
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


def together(processes: int) -> list[str]:
    """The flags that processes share, but for their index: an address that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = ["--distributed", f"--processes.coordinator={address}"]
    return [*flags, f"--processes.count={processes}"]


@contextmanager
def ended() -> Iterator[list[subprocess.Popen]]:
    """A list of processes; those that are still running at the end are killed."""
    running: list[subprocess.Popen] = []
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def said(folder: Path) -> str:
    """The ends of the logs in a folder."""
    return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The work folders of one process and of two."""
    folder = tmp_path_factory.mktemp("distributed")
    prepare_phantoms(folder / "data", seed=17, train=40, valid=16, test=8, short_side=64)
    here = f"--data-dir={folder / 'data'}"
    pair = [*together(2), here, f"--workdir={folder / 'two'}"]

    def both(life: str) -> list[subprocess.Popen]:
        logs = [folder / f"{life}-{i}.log" for i in (0, 1)]
        return [start(log, 4, *pair, f"--processes.index={i}") for i, log in enumerate(logs)]

    with ended() as running:
        running += both("stopped")
        wait_for(lambda: any((folder / "two").glob("classifier-*/checkpoints/3")), running)
        running[1].send_signal(signal.SIGTERM)
        codes = [process.wait(120) for process in running]
        running += both("lost")
        wait_for(lambda: any((folder / "two").glob("segmenter-*/checkpoints/*")), running[2:])
        running[3].kill()
        codes += [process.wait(300) for process in running[2:]]
        running += [
            *both("again"),
            start(folder / "alone.log", 8, here, f"--workdir={folder / 'one'}"),
        ]
        codes += [process.wait(600) for process in running[4:]]
    assert codes == [143, 143, -signal.SIGABRT, -signal.SIGKILL, 0, 0, 0], said(folder)
    return folder / "one", folder / "two"


def wait_for(happens: Callable[[], bool], running: list[subprocess.Popen]) -> None:
    """Waits until something holds, or a process has ended, or long enough."""
    limit = time.monotonic() + 300
    while not happens() and time.monotonic() < limit:
        if any(process.poll() is not None for process in running):
            return
        time.sleep(0.05)


def stage(workdir: Path, name: str) -> Path:
    (folder,) = workdir.glob(f"{name}-*")
    return folder


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_every_stage_is_written_once_and_whole(runs):
    one, two = ({p.parent.name for p in run.glob("*/manifest.json")} for run in runs)
    assert len(one) == 8 and one == two
    assert not list(runs[1].rglob("*.part"))


@pytest.mark.parametrize("name", ["classifier", "irnet", "segmenter"])
def test_losses_agree(runs, name):
    one, two = (losses(stage(run, name)) for run in runs)
    assert len(one) >= 1
    np.testing.assert_allclose(two[:10], one[:10], rtol=1e-5)
    np.testing.assert_allclose(two, one, rtol=1e-2)  # rounding grows with the steps


def masks(workdir: Path) -> PseudoMaskSource:
    name = "pseudo_masks-irnet"
    folder = stage(workdir, name)
    assert len([*folder.glob("masks-*.arrayrecord")]) == 5  # shards; the second process writes two
    return PseudoMaskSource(StageFolder(folder, name, "", {}, {}))


def test_pseudo_masks_agree(runs):
    one, two = map(masks, runs)
    assert len(one) == len(two) == 40
    same = []
    for row, other in ((one[i], two[i]) for i in range(40)):
        assert row.image_id == other.image_id and row.planes.keys() == other.planes.keys()
        same += [np.array_equal(row.planes[name], other.planes[name]) for name in row.planes]
    assert len(same) > 10 and np.mean(same) > 0.9


def test_reports_agree(runs):
    one, two = (json.loads((stage(run, "evaluation") / "report.json").read_text()) for run in runs)
    assert two["n"] == one["n"] and two["mean"].keys() == one["mean"].keys()
    # The prior asks no network: its numbers are the same, and those of the others nearly so.
    assert two["mean"]["prior"] == one["mean"]["prior"]
    for name, mean in one["mean"].items():
        assert two["mean"][name]["iou"] == pytest.approx(mean["iou"], abs=0.02), name
    aurocs = [np.array(list(r["classifier"]["auroc"].values()), float) for r in (one, two)]
    np.testing.assert_allclose(*aurocs, atol=0.1)  # of few images: a pair is 0.02 or more


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="go together"):
        Processes(coordinator="a:1")
    with pytest.raises(ValueError, match="must lie in"):
        Processes("a:1", 2, 2)
    with pytest.raises(ValueError, match="without --distributed"):
        Config(processes=Processes("a:1", 2, 1))
