"""A step and an inference function compile for TPUs, on a machine without one.

    python -m pytest -n0 tests/with_tpu/check_compile.py

Not part of the suite, which needs no compiler of TPUs: pytest collects this file only when it is named.
Needs `pip install '.[tpu]'` and two minutes.
"""

import json

import pytest

from experiments.compilation.compiled import DoesNotFit, compile_batch
from experiments.compilation.functions import functions_of
from experiments.compilation.hlo import SLICES
from experiments.compilation.slices import open_slice, prepare_jax
from experiments.compile import main
from experiments.run.config import Config

TINY = ["--classifier.network.blocks", "1", "1", "1", "1", "--classifier.network.growth", "4"]
FLAGS = [*TINY, "--classifier.network.width", "8", "--image-size", "64", "--batch-per-chip", "8"]


@pytest.fixture(autouse=True, scope="module")
def compiler():
    prepare_jax("v5e:2x2")


def compiled(folder, *flags):
    main([*FLAGS, "--stages", "classifier", f"--out={folder}", *flags])
    return json.loads((folder / "compile.json").read_text())


def test_a_step_and_an_inference_function_compile_for_a_slice(tmp_path):
    written = compiled(tmp_path, "--topology", "v5e:4x4")
    assert written["topology"] == "v5e:4x4: 16 x TPU v5 lite, 4 hosts"
    step, validation = written["rows"]
    assert (step["devices"], validation["devices"]) == (16, 4)  # all chips, and those of a host
    assert step["images"] == validation["images"] == 8
    (reduced,) = [kind for kind in step["collectives"] if kind["kind"] == "all-reduce"]
    assert reduced["count"] > 10 and reduced["sent"] > 1000
    assert validation["collectives"] == []
    for row in (step, validation):
        assert 0 < row["memory_share"] < 0.1 and row["flops"] > 1e6 and row["seconds"] > 0
    assert step["aliased"] > 0.9 * step["outputs"]  # the state is donated


@pytest.mark.parametrize("kind", ["densenet", "resnet"])
def test_the_compiler_keeps_what_rematerialisation_computes_again(tmp_path, kind):
    deep = ["--classifier.network.blocks", "6", "1", "1", "1", "--classifier.network.growth", "32"]
    flags = [f"--classifier.network.kind={kind}", *deep, "--functions", "training"]
    flags += ["--topology", "v5e:1x1"]
    (kept,) = compiled(tmp_path / "kept", *flags)["rows"]
    (again,) = compiled(tmp_path / "again", *flags, "--classifier.network.rematerialize")["rows"]
    assert again["flops"] > 1.05 * kept["flops"]  # what it saves shows at full size alone


def test_two_slices_send_to_each_other(tmp_path):
    written = compiled(
        tmp_path, "--topology", "v5e:2x2", "--slices", "2", "--functions", "training"
    )
    assert written["topology"].startswith("2 x v5e:2x2: 8 x")
    (step,) = written["rows"]
    (between,) = [kind for kind in step["collectives"] if kind["kind"] == SLICES]
    assert between["count"] > 0 and between["sent"] > 0


@pytest.mark.parametrize(
    ("name", "chips", "memory"),
    [("v4:2x2x1", 4, 32), ("v5e:1x1", 1, 16), ("v5p:2x2x1", 4, 95), ("v6e:2x4", 8, 32)],
)
def test_slices_of_every_generation_are_described(name, chips, memory):
    target = open_slice(name)
    assert (target.training.size, target.memory / 2**30) == (chips, memory)
    assert target.platform == "tpu"


def test_a_batch_too_large_for_the_chip_is_refused_by_its_compiler():
    target = open_slice("v5e:2x2")
    maps = next(f for f in functions_of(Config(), target) if f.name == "maps")
    with pytest.raises(DoesNotFit, match=r"\(15\.75G\); .*--pseudo-masks\.batch-size"):
        compile_batch(maps, target, 4 * 4096)
