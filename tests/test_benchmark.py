"""The benchmark runs and counts correctly; speed itself is not tested."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import BenchmarkConfig, main, one_line
from experiments.benchmarks import torch_peers
from experiments.benchmarks.roofline import cost_of, data_sheet_peak, measure_peak
from experiments.benchmarks.table import OURS, Measurement, cells, speed_ratios
from experiments.benchmarks.timing import time_alternating
from experiments.benchmarks.workloads import ROWS

TESTED_ROWS = tuple(row for row in ROWS if row not in ("irnet", "segmenter"))
"""Those two would take a minute to compile; their steps have tests of their own."""

POSITIVE = ("milliseconds", "min_milliseconds", "max_milliseconds", "images_per_second")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    main(["--quick", "--only", *TESTED_ROWS, "--repeats=1", "--seconds=1", f"--out={out}"])
    return json.loads((out / "benchmark.json").read_text()), (out / "benchmark.md").read_text()


def test_every_row_is_there_and_positive(written):
    rows = written[0]["rows"]
    assert {row["row"] for row in rows} == set(TESTED_ROWS)
    for row in rows:
        assert all(0 < row[name] < math.inf for name in POSITIVE), row
        if row["row"] not in ("loader", "end_to_end"):
            names = ("compile_seconds", "memory_bytes", "flops", "flops_share", "bandwidth_share")
            assert all(0 < row[name] < math.inf for name in names), row
    assert "extrapolated" in rows[-1]["note"]


def test_markdown_and_json_agree(written):
    machine, text = written
    for row in machine["rows"]:
        assert f"| {' | '.join(cells(Measurement(**row)))} |" in text
    assert f"- date: {machine['date']}" in text and f"- jax: {jax.__version__}" in text
    assert "measured in this run" in machine["limits"]


def test_operations_and_bytes_of_a_product():
    matrix = jnp.ones((64, 128))
    product = jax.jit(lambda a, b: a @ b).lower(matrix, matrix.T).compile()
    cost = cost_of(product)
    assert cost.flops == 2 * 64 * 128 * 64
    assert cost.memory >= 4 * (2 * 64 * 128 + 64 * 64)


def test_donated_buffers_count_once():
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
def test_data_sheets_are_found_by_device_kind(kind, rate):
    assert data_sheet_peak(kind).bandwidth == rate


def test_an_unlisted_device_is_measured():
    assert data_sheet_peak("cpu") is None
    peak = measure_peak(jax.devices()[0], side=64, length=1024)
    rates = (peak.flops_per_second(jnp.bfloat16), peak.flops_per_second(jnp.float32))
    assert min(*rates, peak.bandwidth) > 0


def test_runners_alternate():
    order = []

    class Marker:
        def __init__(self, name):
            self.name = name

        def start(self):
            order.append(self.name)

        def wait(self, started):
            if self.name == "slow":
                order.append("waited")

    times = time_alternating({"fast": Marker("fast"), "slow": Marker("slow")}, 3, 60)
    assert {name: t.repeats for name, t in times.items()} == {"fast": 3, "slow": 3}
    assert (
        order.count("waited") == 5
    )  # the first call, the one that is timed to plan, three repeats
    turns = [b for a, b in zip(["", *order], order, strict=False) if a != b and b != "waited"]
    assert turns[-6:] == ["fast", "slow"] * 3


def test_ratios_are_ours_over_theirs():
    rows = [
        Measurement("random_walk", "a walk", OURS, 1, images_per_second=6.0),
        Measurement("random_walk", "a walk", "torch", 1, images_per_second=2.0),
        Measurement("random_walk", "a walk", "torch.compile", 1, note="out of memory"),
    ]
    compared = {"row": "random_walk", "title": "a walk", "against": "torch", "ratio": 3.0}
    assert speed_ratios(rows) == [compared]


def test_missing_packages_are_reported(monkeypatch, capsys):
    monkeypatch.setattr(torch_peers, "find_spec", lambda name: None if "torch" in name else 1)
    main(["--quick", "--only=random_walk", "--repeats=1", "--seconds=1", "--against=torch"])
    out = capsys.readouterr().out
    assert "--against torch needs torch, torchvision, segmentation-models-pytorch: pip" in out
    assert "walk of 10" in out


def test_torch_is_not_imported_without_the_flag():
    check = "import sys, experiments.benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_errors_fit_in_a_cell():
    assert one_line(RuntimeError("RESOURCE_EXHAUSTED: allocating 9 GB")) == "out of memory"
    assert one_line(ValueError("a | b")) == "ValueError: a / b"


@pytest.mark.parametrize("flag", ["--batch=3", "--repeats=0", "--seconds=0"])
def test_invalid_settings_are_refused_by_name(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--quick", flag])
    assert ended.value.code == 2 and flag.partition("=")[0] in capsys.readouterr().err


def test_the_batch_applies_to_every_row():
    assert set(BenchmarkConfig(batch=16).scale().batches.values()) == {16}
