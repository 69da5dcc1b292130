import json
import struct
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tensorboardX.proto.event_pb2 import Event, SessionLog

from chexseg_jax.models.layers import BatchNorm
from chexseg_jax.training import metrics_log
from chexseg_jax.training.loop import fit
from chexseg_jax.training.metrics_log import (
    MetricsLog,
    TensorBoard,
    WeightsAndBiases,
    read_metrics,
    sending_to,
    sinks,
)
from experiments.run.config import read_arguments


class Kept:
    """A sink that keeps what it is sent."""

    def __init__(self, folder: Path, start: int):
        self.folder, self.start, self.rows, self.closed = folder, start, [], False

    def add_scalars(self, step, values):
        assert not self.closed
        self.rows.append((step, dict(values)))

    def add_images(self, step, images):
        raise AssertionError("a training has no images")

    def close(self):
        self.closed = True


def events(path: Path):
    """The events of a file: a length and its checksum, the event and its checksum, and so on."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def seen(folder: Path):
    """What TensorBoard shows: a start forgets every earlier event at or after its step."""
    shown = []
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                shown = [row for row in shown if row[0] < event.step]
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return shown


def test_numbers_go_to_the_file_and_to_every_sink(tmp_path):
    opened = []

    def opener(folder, start):
        opened.append(Kept(folder, start))
        return opened[-1]

    with sending_to(opener, opener):
        log = MetricsLog(tmp_path / "metrics.jsonl", 4)
        log.add(5, {"loss": np.float32(0.5)})
        assert opened[0].rows == []  # not looked at before the next step is on its way
        log.write(5, {"score": 0.25})
    MetricsLog(tmp_path / "elsewhere.jsonl", 0).write(1, {"score": 1.0})
    assert len(opened) == 2 and all(sink.closed for sink in opened)
    assert (opened[0].folder, opened[0].start) == (tmp_path, 4)
    assert opened[0].rows == opened[1].rows == [(5, {"score": 0.25}), (5, {"loss": 0.5})]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows == [{"step": 5, "score": 0.25}, {"step": 5, "loss": 0.5}]


def test_sinks_are_closed_when_a_training_fails(tmp_path):
    opened = []

    def opener(folder, start):
        opened.append(Kept(folder, start))
        return opened[-1]

    with pytest.raises(RuntimeError), sending_to(opener):
        MetricsLog(tmp_path / "metrics.jsonl", 0)
        raise RuntimeError
    assert opened[0].closed


class Line(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jax.numpy.zeros((1, 1)))
        self.norm = BatchNorm(1)


def test_a_training_that_goes_on_shows_every_step_once(tmp_path):
    examples = grain.MapDataset.source([{"x": np.ones(1, np.float32)}] * 8).repeat()

    def objective(model, batch, key, context):
        return ((batch["x"] @ model.weight[...] - 1) ** 2).mean(), {}

    def train(steps):
        with sending_to(TensorBoard):
            fit(
                Line(), examples, objective, optax.adam(0.1), folder=tmp_path, name="line",
                batch_size=8, steps=steps, every=2, key=jax.random.key(0),
            )  # fmt: skip

    train(2)
    # Stopped after step 4, before its checkpoint: those rows are logged once more.
    with sending_to(TensorBoard):
        log = MetricsLog(tmp_path / "metrics.jsonl", 2)
        for step in (3, 4):
            log.add(step, {"loss": 9.0})
        log.flush()
    train(4)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    shown = seen(tmp_path)
    assert [step for step, tag, _ in shown if tag == "loss"] == [1, 2, 3, 4]
    losses = [value for _, tag, value in shown if tag == "loss"]
    assert losses == pytest.approx([row["loss"] for row in rows if "loss" in row])
    assert [(step, value) for step, tag, value in shown if tag == "score"] == [(2, 2), (4, 4)]


def test_tensorboard_keeps_pictures(tmp_path):
    sink = TensorBoard(tmp_path, 0)
    image = np.zeros((4, 6, 3), np.uint8)
    sink.add_images(7, {"overlay/a": image})
    sink.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    (value,) = [v for event in events(path) for v in event.summary.value]
    assert (value.tag, value.image.height, value.image.width) == ("overlay/a", 4, 6)
    assert value.image.encoded_image_string.startswith(b"\x89PNG")


LIMITED = """
import pathlib, resource, signal, sys
from chexseg_jax.training.metrics_log import TensorBoard
from experiments.run.cli import managed_run

folder = pathlib.Path(sys.argv[1])
with managed_run(folder):
    sink = TensorBoard(folder, 0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    for step in range(10_000):
        sink.add_scalars(step, {"loss": 1.0})
"""


def test_events_that_find_no_room_end_the_run_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'tensorboard'}: File too large; allow larger files" in done.stderr


@pytest.fixture
def service(monkeypatch):
    """A stand-in for the package wandb, and what it was told."""
    told = []

    class Run:
        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.Image = lambda image: ("picture", image.shape)
    module.init = lambda **settings: told.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_weights_and_biases_only_when_asked_for(tmp_path, service):
    folder = tmp_path / "segment-0123"
    with sending_to(*sinks("chests")):
        folder.mkdir()
        MetricsLog(folder / "metrics.jsonl", 0).write(1, {"score": 0.5})
        MetricsLog(folder / "metrics.jsonl", 1).write(2, {"score": 0.75})
    settings = {
        "project": "chests",
        "id": "segment-0123",
        "name": "segment-0123",
        "dir": str(folder),
    }
    assert service == [
        {**settings, "resume": None},
        (1, {"score": 0.5}),
        {**settings, "resume": "allow"},
        (2, {"score": 0.75}),
        "finished",
        "finished",
    ]
    sink = WeightsAndBiases("chests", folder, 0)
    sink.add_images(3, {"overlay": np.zeros((2, 2, 3), np.uint8)})
    assert service[-1] == (3, {"overlay": ("picture", (2, 2, 3))})
    assert sinks(None) == [TensorBoard]
    assert isinstance(sinks("chests")[1], partial)
    assert read_arguments("", ["--wandb=chests"]).wandb == "chests"


def test_packages_that_are_not_there(monkeypatch, capsys):
    monkeypatch.setattr(metrics_log, "find_spec", lambda package: None)
    assert sinks(None) == []
    with pytest.raises((SystemExit, ValueError)) as caught:
        read_arguments("", ["--wandb=chests"])
    said = " ".join((capsys.readouterr().err + str(caught.value)).replace("│", " ").split())
    assert "--wandb needs a package: pip install 'chexseg-jax[wandb]'" in said


def test_the_library_imports_neither_package():
    code = (
        "import sys, chexseg_jax.training.metrics_log, chexseg_jax.training.loop\n"
        "print(sorted({'tensorboardX', 'wandb'} & set(sys.modules)))"
    )
    root = Path(metrics_log.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
