import json
import math
import os
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chexseg_jax.images import IMAGENET
from chexseg_jax.models.layers import BatchNorm, linear
from chexseg_jax.models.spec import BackboneSpec, NetworkSpec
from chexseg_jax.runtime.memory import needed_bytes
from chexseg_jax.training import loop
from chexseg_jax.training.checkpoints import Checkpoints, restore, to_pure_dicts
from chexseg_jax.training.data import BatchError, shuffled_repeated
from chexseg_jax.training.loop import HEADROOM, NotFinite, fit, learning_rates, poly
from chexseg_jax.training.metrics_log import read_metrics
from chexseg_jax.training.signals import SIGNALS, Stopped, raise_on_signals
from chexseg_jax.training.step import init_state, make_step, moving_average


class Net(nnx.Module):
    """A network with a statistic."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first, self.norm = linear(3, 8, rngs=rngs), BatchNorm(8)
        self.last = linear(8, 1, rngs=rngs)

    def __call__(self, rows, *, train=False):
        hidden = self.norm(self.first(rows)[:, None, None], train=train)[:, 0, 0]
        return self.last(jax.nn.relu(hidden))[:, 0]


class NetSpec(NetworkSpec):
    """The specification of `Net`."""

    def build(self, seed=0, backbone=None):
        return Net(seed)


NET = NetSpec("classifier", BackboneSpec(), 1, 32, 32, IMAGENET)


class Rows:
    fingerprint = "rows"

    def __len__(self):
        return 64

    def __getitem__(self, index):
        row = np.random.default_rng(int(index)).normal(size=3).astype(np.float32)
        return {"image_id": f"r{index}", "rows": row, "target": np.float32(row[0] - row[1])}


def objective(model, batch, key, context):
    noise = 0.01 * jax.random.normal(key, batch["target"].shape)
    error = model(batch["rows"], train=True) - batch["target"] + noise
    return (error**2).mean(), {"error": jnp.abs(error).mean()}


def train(folder, steps=12, **changes):
    arguments = dict(
        folder=folder,
        name="test",
        batch_size=16,
        steps=steps,
        every=4,
        key=jax.random.key(1),
    )
    # Not Adam: the bias before the norm has a gradient of rounding alone, which Adam would blow up.
    descent = optax.sgd(0.1, momentum=0.5)
    given = {"examples": shuffled_repeated(Rows(), 0), "objective": objective} | arguments | changes
    return fit(Net(), optimizer=descent, **given)


def weights(folder):
    model = restore(folder, NET)
    _, parameters, statistics = to_pure_dicts(model)
    return jax.tree.map(np.asarray, (parameters, statistics))


def same(left, right, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **(tolerance or {"rtol": 0})), left, right)


def test_it_learns_and_logs_every_step(tmp_path):
    train(tmp_path, steps=60, every=30)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert [row["step"] for row in rows if "score" in row] == [30, 60]


def losses_in(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def train_until_killed(folder, **changes):
    """Train until the evaluation of step 8, when the log already holds what came after step 4."""
    stops = iter([False, True])

    def stop(model):
        if next(stops):
            raise KeyboardInterrupt
        return {"score": 0.0}

    with pytest.raises(KeyboardInterrupt):
        train(folder, evaluate=stop, **changes)


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    train(tmp_path / "whole")
    train_until_killed(tmp_path / "parts")
    assert [row["step"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")][-1] == 8
    train(tmp_path / "parts")
    same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    losses = [losses_in(tmp_path / name) for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_averaged_weights_are_what_is_kept_and_resume_to_the_same_bits(tmp_path):
    train(tmp_path / "raw")
    train(tmp_path / "whole", average=0.9)
    train_until_killed(tmp_path / "parts", average=0.9)
    train(tmp_path / "parts", average=0.9)
    same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    logs = [losses_in(tmp_path / name) for name in ("raw", "whole")]
    assert logs[0] == logs[1]  # the average is beside the training, not in it
    raw, averaged = (jax.tree.leaves(weights(tmp_path / name)) for name in ("raw", "whole"))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(raw, averaged, strict=True))


def test_a_moving_average_by_hand():
    averages, values = (
        {"w": jnp.array(1.0), "n": jnp.array(3)},
        {"w": jnp.array(2.0), "n": jnp.array(4)},
    )
    early = moving_average(averages, values, 0.9, jnp.array(0))
    assert float(early["w"]) == pytest.approx(1.9) and int(early["n"]) == 4
    late = moving_average(averages, values, 0.9, jnp.array(1000))
    assert float(late["w"]) == pytest.approx(1.1)


def test_a_cosine_warms_up_and_ends_at_zero():
    rates = learning_rates("cosine", 0.1, 100)
    assert float(rates(0)) == 0.0 and float(rates(5)) == pytest.approx(0.1)
    assert float(rates(52)) == pytest.approx(0.05, abs=0.002)
    assert float(rates(100)) == pytest.approx(0.0, abs=1e-8)
    assert learning_rates("constant", 0.1, 100) == 0.1
    assert np.isfinite(float(learning_rates("cosine", 0.1, 1)(0)))


class Interrupted(Rows):
    """Rows whose reading sends this process a signal, once."""

    def __init__(self, number, at):
        self.number, self.left = number, at

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("at", [1, 150, 190])
def test_a_signal_stops_after_a_step_that_is_kept(tmp_path, number, at):
    train(tmp_path / "whole")
    with pytest.raises(Stopped) as stopped, raise_on_signals():
        train(tmp_path / "parts", examples=shuffled_repeated(Interrupted(number, at), 0))
    assert stopped.value.code == 128 + number
    done = int(stopped.value.where.split()[2])  # examples are read ahead of the step
    assert done <= -(-at // 16)
    if done:
        with Checkpoints(tmp_path / "parts" / "checkpoints", training=False) as checkpoints:
            assert checkpoints.latest() == done
        assert [row["step"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")][
            -1
        ] == done
    train(tmp_path / "parts")
    same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def on(monkeypatch, devices):
    """From here on trainings use the first devices alone."""
    few = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    monkeypatch.setattr("chexseg_jax.training.loop.global_mesh", lambda: few)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    """Where a training on all devices, never stopped, has been."""
    folder = tmp_path_factory.mktemp("eight")
    train(folder)
    return folder


def agree(left, right):
    same(weights(left), weights(right), atol=1e-5)
    logs = [read_metrics(folder / "metrics.jsonl") for folder in (left, right)]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for one, other in zip(*logs, strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_fewer_devices_equal_eight(tmp_path, monkeypatch, on_eight, devices):
    on(monkeypatch, devices)
    train(tmp_path)
    agree(on_eight, tmp_path)


def test_a_training_goes_on_with_fewer_devices_and_more(tmp_path, monkeypatch, on_eight):
    for devices, steps in ((8, 4), (1, 8), (2, 12)):
        on(monkeypatch, devices)
        train(tmp_path, steps=steps)
    agree(on_eight, tmp_path)


def test_one_example_a_device(tmp_path):
    train(tmp_path, batch_size=8)
    _, statistics = weights(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(statistics))


def test_the_best_is_kept_beside_the_last(tmp_path):
    scores = iter([0.2, 0.9, 0.5])
    found = train(tmp_path, evaluate=lambda model: {"score": next(scores)})
    assert found == {"best_step": 8.0, "score": 0.9}
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"8", "12"}


def test_only_what_is_trained_changes(tmp_path):
    train(tmp_path, trained=nnx.All(nnx.Param, nnx.PathContains("last")))
    parameters, _ = weights(tmp_path)
    _, fresh, _ = to_pure_dicts(Net())
    same(parameters["first"], fresh["first"])
    with pytest.raises(AssertionError):
        same(parameters["last"], fresh["last"])


def test_the_callers_model_stays_usable(tmp_path):
    model = Net()
    before = np.asarray(model(jnp.ones((1, 3))))
    fit(
        model,
        shuffled_repeated(Rows(), 0),
        objective,
        optax.adam(1e-2),
        folder=tmp_path,
        name="test",
        batch_size=8,
        steps=2,
        every=2,
        key=jax.random.key(0),
    )
    np.testing.assert_array_equal(model(jnp.ones((1, 3))), before)


def steps_in(folder):
    """The steps whose checkpoints are there."""
    return {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}


def broken_at(at, what):
    """An objective whose loss, gradient or statistics are not finite in one step."""
    fault = jax.random.key_data(jax.random.fold_in(jax.random.key(1), at))

    def break_once(model, batch, key, context):
        bad = (jax.random.key_data(key) == fault).all()
        if what == "weights":  # as a batch of infinite pixels leaves a running mean
            model.norm.mean[...] += jnp.where(bad, jnp.inf, 0.0)
            model.norm.mean[...] += jnp.where(bad, -jnp.inf, 0.0)
        loss, logs = objective(model, batch, key, context)
        if what == "loss":
            return jnp.where(bad, jnp.nan, loss), logs
        # The root of nought: its value is finite and its slope is not.
        nought = jnp.where(bad & (what == "gradient"), 0 * model.last.kernel[...].sum(), 1.0)
        return loss + jnp.sqrt(nought), logs

    return break_once


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
@pytest.mark.parametrize("at", [0, 3, 5, 11])
def test_what_is_not_finite_ends_the_training_before_it_is_kept(tmp_path, what, at):
    # Steps count from 0 and are saved after 4, 8 and 12: at 3 and 7 the last before, at 11 the last.
    for _ in range(2):  # the same command again is no way past it
        with pytest.raises(NotFinite, match=f"at step {at} the {what} became infinite") as raised:
            train(tmp_path, objective=broken_at(at, what))
        assert max(steps_in(tmp_path), default=0) == at
    said = json.loads((tmp_path / "not_finite.json").read_text())
    examples = shuffled_repeated(Rows(), 0)
    names = [examples[16 * at + i]["image_id"] for i in range(16)]
    assert said == {"step": at, "broken": what, "image_ids": names}
    assert f"images are {', '.join(names[:3])}, ..., all named in" in str(raised.value)
    # With the fault gone it ends as if it had never been.
    train(tmp_path, objective=broken_at(99, what))
    train(tmp_path / "whole", objective=broken_at(99, what))
    same(weights(tmp_path), weights(tmp_path / "whole"))


def test_a_broken_state_is_never_the_best(tmp_path):
    scores = iter([0.2, 0.1])
    with pytest.raises(NotFinite):
        train(
            tmp_path,
            objective=broken_at(9, "loss"),
            evaluate=lambda model: {"score": next(scores)},
        )
    with Checkpoints(tmp_path / "checkpoints", training=False) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (4, 9)


def test_a_log_cut_off_in_a_line_is_read_up_to_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    train(tmp_path, steps=4)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        weights(tmp_path)


def test_the_rate_decays_polynomially():
    schedule = poly(0.1, 100)
    assert [float(schedule(t)) for t in (0, 50, 100)] == pytest.approx([0.1, 0.1 * 0.5**0.9, 0.0])


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    """For a network without BatchNorm and without noise, which see a part at a time."""

    def quiet(model, batch, key, context):
        hidden = jax.nn.relu(model.first(batch["rows"]))
        error = model.last(hidden)[:, 0] - batch["target"]
        return (error**2).mean(), {"error": jnp.abs(error).mean()}

    for parts in (1, 2, 4):
        train(tmp_path / f"{parts}", objective=quiet, accumulate=parts, batch_size=32)
    logs = [read_metrics(tmp_path / f"{parts}" / "metrics.jsonl") for parts in (1, 2, 4)]
    for one, *others in zip(*logs, strict=True):
        for other in others:
            assert other == pytest.approx(one, rel=1e-5)
    for parts in (2, 4):
        same(weights(tmp_path / f"{parts}"), weights(tmp_path / "1"), rtol=1e-4, atol=1e-6)


def test_batchnorm_sees_a_part_at_a_time():
    batch = {name: np.stack([Rows()[i][name] for i in range(16)]) for name in ("rows", "target")}
    net, descent = Net(), optax.sgd(0.0)
    graph, state = init_state(net, descent, nnx.Param)
    step = make_step(graph, objective, descent, jax.random.key(0), accumulate=2)
    frozen = step(state, batch, np.int32(0), np.zeros(1, np.int32), None)[0]["frozen"]
    expected, hidden = np.zeros(8), Net().first(batch["rows"])
    for part in (hidden[::2], hidden[1::2]):
        expected = 0.9 * expected + 0.1 * np.asarray(part).mean(0)
    np.testing.assert_allclose(frozen["norm"]["mean"][...], expected, rtol=1e-5)


def test_parts_that_do_not_divide_the_batch_are_refused(tmp_path):
    with pytest.raises(BatchError, match=r"--test\.accumulate=3 does not divide the 2 images"):
        train(tmp_path, accumulate=3)


def test_a_step_that_does_not_fit_names_a_batch_that_does(tmp_path, monkeypatch):
    def wide(model, batch, key, context):
        """A step whose memory is that of 512 numbers a row."""
        cells = jnp.sin(batch["rows"] @ jnp.ones((3, 512))) @ jnp.ones((512, 8))
        return ((model(batch["rows"], train=True) - jnp.cos(cells).mean(-1)) ** 2).mean(), {}

    run = partial(train, objective=wide, steps=1)

    def message(**options):
        with pytest.raises(BatchError) as caught:
            run(tmp_path, name="classifier-teacher", **options)
        return str(caught.value)

    step = {}  # the bytes of every step that was compiled

    def needed(compiled):
        return step.setdefault(len(step), needed_bytes(compiled))

    monkeypatch.setattr(loop, "needed_bytes", needed)
    monkeypatch.setattr(loop, "free_bytes", lambda _: None)
    run(tmp_path / "fits", batch_size=1024)
    monkeypatch.setattr(loop, "free_bytes", lambda _: math.ceil(step[0] / HEADROOM))
    run(tmp_path / "fits", batch_size=1024, steps=2)  # as much as is needed is enough
    assert step[0] == step[1]
    monkeypatch.setattr(loop, "free_bytes", lambda _: step[0] * 2 // 3)
    said = message(batch_size=1024)
    assert "a step of 1024 images needs" in said and "\n" not in said
    fits, parts = map(int, re.findall(r"--classifier\.(?:batch-size|accumulate) (\d+)", said))
    assert 0 < fits < 1024 and parts > 1
    run(tmp_path / "smaller", batch_size=fits)
    run(tmp_path / "parts", batch_size=1024, accumulate=parts)
    monkeypatch.setattr(loop, "free_bytes", lambda _: 10)
    assert "too little for one image" in message()
