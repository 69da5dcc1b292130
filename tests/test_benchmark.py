"""The benchmark runs and counts right. How fast anything is, no test says."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import Config, main, one_line
from experiments.benchmarks.measurements import OURS, Measurement, ratios
from experiments.benchmarks.roofline import cost_of, known, measured
from experiments.benchmarks.table import cells
from experiments.benchmarks.timing import take_turns
from experiments.benchmarks.workloads import ROWS

TRIED = tuple(row for row in ROWS if row not in ("relate", "segment"))
"""Those two would be a minute's compiling; their steps are tested where they are."""

POSITIVE = ("milliseconds", "least_milliseconds", "greatest_milliseconds", "images_per_second")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    main(["--quick", "--only", *TRIED, "--repeats=1", "--seconds=1", f"--out={out}"])
    return json.loads((out / "benchmark.json").read_text()), (out / "benchmark.md").read_text()


def test_every_row_is_there_and_positive(written):
    rows = written[0]["rows"]
    assert {row["row"] for row in rows} == set(TRIED)
    for row in rows:
        assert all(0 < row[name] < math.inf for name in POSITIVE), row
        if row["row"] not in ("loader", "whole"):
            names = ("compile_seconds", "memory_bytes", "flops", "flops_share", "bandwidth_share")
            assert all(0 < row[name] < math.inf for name in names), row
    assert "extrapolated" in rows[-1]["note"]


def test_markdown_and_json_agree(written):
    about, text = written
    for row in about["rows"]:
        assert f"| {' | '.join(cells(Measurement(**row)))} |" in text
    assert f"- date: {about['date']}" in text and f"- jax: {jax.__version__}" in text
    assert "measured in this run" in about["limits"]


def test_operations_and_bytes_of_a_product():
    matrix = jnp.ones((64, 128))
    product = jax.jit(lambda a, b: a @ b).lower(matrix, matrix.T).compile()
    cost = cost_of(product)
    assert cost.flops == 2 * 64 * 128 * 64
    assert cost.memory >= 4 * (2 * 64 * 128 + 64 * 64)


def test_a_result_in_its_argument_s_place_counts_once():
    numbers = jnp.ones(1024)
    kept = cost_of(jax.jit(lambda v: v + 1).lower(numbers).compile())
    given = cost_of(jax.jit(lambda v: v + 1, donate_argnums=0).lower(numbers).compile())
    assert (kept.memory, given.memory) == (2 * 4096, 4096)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("TPU v5 lite", 0.819e12),
        ("TPU v5p", 2.765e12),
        ("TPU v6 lite", 1.638e12),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, rate):
    assert known(kind).bandwidth == rate


def test_a_device_that_is_not_known_is_measured():
    assert known("cpu") is None
    peak = measured(jax.devices()[0], side=64, length=1024)
    assert min(peak.rate(jnp.bfloat16), peak.rate(jnp.float32), peak.bandwidth) > 0


def test_runners_take_turns():
    order = []

    class Marker:
        def __init__(self, name):
            self.name = name

        def start(self):
            order.append(self.name)

        def wait(self, started):
            if self.name == "slow":
                order.append("waited")

    times = take_turns({"fast": Marker("fast"), "slow": Marker("slow")}, 3, 60)
    assert {name: found.repeats for name, found in times.items()} == {"fast": 3, "slow": 3}
    assert (
        order.count("waited") == 5
    )  # the first call, the one that is timed to plan, three repeats
    turns = [b for a, b in zip(["", *order], order, strict=False) if a != b and b != "waited"]
    assert turns[-6:] == ["fast", "slow"] * 3


def test_ratios_are_ours_over_theirs():
    rows = [
        Measurement("walk", "a walk", OURS, 1, images_per_second=6.0),
        Measurement("walk", "a walk", "torch", 1, images_per_second=2.0),
        Measurement("walk", "a walk", "torch.compile", 1, note="out of memory"),
    ]
    compared = {"row": "walk", "name": "a walk", "against": "torch", "ratio": 3.0}
    assert ratios(rows) == [compared]


def test_missing_packages_are_said(monkeypatch, capsys):
    monkeypatch.setattr(torch_peers, "find_spec", lambda name: None if "torch" in name else 1)
    main(["--quick", "--only=walk", "--repeats=1", "--seconds=1", "--against=torch"])
    out = capsys.readouterr().out
    assert "--against torch needs torch, torchvision, segmentation-models-pytorch: pip" in out
    assert "walk of 10" in out


def test_torch_is_imported_by_nobody_who_does_not_ask():
    check = "import sys, experiments.benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_what_does_not_fit_says_so():
    assert one_line(RuntimeError("RESOURCE_EXHAUSTED: allocating 9 GB")) == "out of memory"
    assert one_line(ValueError("a | b")) == "ValueError: a / b"


@pytest.mark.parametrize("flag", ["--batch=3", "--repeats=0", "--seconds=0"])
def test_what_cannot_be_is_refused_in_a_sentence(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--quick", flag])
    assert ended.value.code == 2 and flag.partition("=")[0] in capsys.readouterr().err


def test_a_batch_is_that_of_every_row():
    assert set(Config(batch=16).scale().batches.values()) == {16}
