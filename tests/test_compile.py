"""`experiments.compile` on the devices at hand, at tiny sizes; `with_tpu` has the compiler of TPUs."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.models.spec import BackboneSpec
from chexseg_jax.runtime.stage_folder import open_stage_folder
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.stages.classifier import ClassifierConfig
from chexseg_jax.stages.segmenter import SegmenterConfig
from chexseg_jax.training import loop
from experiments.benchmarks.roofline import Peak, data_sheet_peak
from experiments.compilation import compiled, slices
from experiments.compilation.compiled import compile_function, roofline, search_largest
from experiments.compilation.functions import functions_of
from experiments.compilation.hlo import SLICES, Collectives, collectives_of, group_size
from experiments.compilation.slices import TopologyError, open_slice
from experiments.compile import HEADER, cells, main
from experiments.run.config import Config, preset_of

TINY = BackboneSpec(blocks=(1, 1, 1, 1), growth=4, width=8)
SIDE, DEVICES = 32, jax.device_count()
NETWORK = ["--classifier.network.blocks", "1", "1", "1", "1", "--classifier.network.growth", "4"]
FLAGS = ["--topology", "cpu", "--image-size", "32", *NETWORK, "--classifier.network.width", "8"]
CONFIG = Config(
    rho=1.0,
    image_size=SIDE,
    classifier=ClassifierConfig(network=TINY, batch_size=2 * DEVICES),
    segmenter=SegmenterConfig(width=8, rates=(1, 2, 3), batch_size=2 * DEVICES),
)


@pytest.fixture(scope="module")
def here():
    """The devices at hand, as if they had been measured."""
    mesh = open_mesh()
    peak = Peak(2e12, 1e12, 1e11, memory=1e12, interconnect=1e10)
    return slices.Slice("cpu", mesh, mesh, peak, 1e12)


def open_mesh():
    return slices._mesh(jax.devices("cpu"))


def function(stage, name, target, config=CONFIG):
    return next(f for f in functions_of(config, target) if (f.stage, f.name) == (stage, name))


def test_the_command_compiles_and_writes_what_it_found(tmp_path, capsys):
    main([*FLAGS, "--stages", "classifier", "seeds", f"--out={tmp_path}"])
    written = json.loads((tmp_path / "compile.json").read_text())
    rows = {(row["stage"], row["function"]): row for row in written["rows"]}
    assert [*rows] == [
        ("classifier", "training step"),
        ("classifier", "validation"),
        ("seeds", "CRF"),
    ]
    for row in rows.values():
        assert row["memory"] == (
            row["arguments"] + row["scratch"] + row["outputs"] - row["aliased"]
        )
        names = ("compile_seconds", "memory", "flops", "bytes_moved", "seconds", "memory_share")
        assert all(row[name] > 0 for name in names), row
        assert row["bound"] in ("operations", "memory")  # there is no interconnect
        assert row["images_per_second"] == pytest.approx(
            row["images"] * row["devices"] / row["seconds"]
        )
    step, validation, crf = rows.values()
    assert step["aliased"] > 0 and validation["aliased"] == 0  # a step donates its state
    (reduced,) = [kind for kind in step["collectives"] if kind["kind"] == "all-reduce"]
    assert reduced["count"] > 1 and reduced["sent"] > 0
    assert validation["collectives"] == [] and "formula" in crf["note"]
    text = (tmp_path / "compile.md").read_text()
    assert f"{DEVICES} x cpu" in text and text in capsys.readouterr().out
    assert len(cells(compiled.Compilation("cams", "maps", 1, 1))) == len(HEADER)


def test_what_does_not_divide_is_a_row_and_an_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*FLAGS, "--stages", "seeds", f"--seeds.batch-size={DEVICES + 1}"])
    assert "1 of 1 do not compile or do not fit: seeds, CRF" in str(ended.value)
    sentence = f"a batch of {DEVICES + 1} does not divide over {DEVICES} devices"
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5e:4", "name a slice as GENERATION:CHIPS"),
        ("v3:2x2", "with one of v4, v5e, v5p, v6e"),
        ("v5e:2x2x1", "a slice of v5e has 2 sides, such as v5e:2x2"),
        ("v5p:2x2", "a slice of v5p has 3 sides, such as v5p:2x2x1"),
        ("cuda", "for a GPU, pip install 'chexseg-jax[cuda]'"),
    ],
)
def test_topologies_that_are_none_are_refused(topology, said):
    with pytest.raises(TopologyError, match=r"--topology") as refused:
        open_slice(topology)
    assert said in str(refused.value) and topology in str(refused.value)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    def missing(*_, **__):
        raise ValueError("unable to find libtpu")

    monkeypatch.setattr(slices.topologies, "get_topology_desc", missing)
    with pytest.raises(TopologyError, match=r"pip install 'chexseg-jax\[tpu\]'"):
        open_slice("v5e:2x2")


@pytest.mark.parametrize("flag", ["--batch-per-chip=0", "--slices=0"])
def test_settings_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*FLAGS, flag])
    assert ended.value.code == 2 and flag.partition("=")[0] in capsys.readouterr().err


def test_several_slices_are_of_tpus():
    with pytest.raises(TopologyError, match="--slices is for TPUs"):
        open_slice("cpu", 2)


def test_what_needs_more_memory_than_a_device_has_does_not_fit(here):
    maps = function("pseudo_masks", "maps", here)
    assert compile_function(maps, 2, here).note == ""
    row = compile_function(maps, 2, replace(here, memory=1000))
    assert row.memory is None and "does not fit: 0.0 GB of 0.0" in row.note
    assert row.note.endswith("choose a smaller --pseudo-masks.batch-size (or --batch-per-chip)")


def refused(message):
    """Return what a compiler makes of a function that it refuses."""

    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError(message)

    return lambda batch: Refused()


def test_the_compilers_refusal_is_told_with_what_to_change(here):
    out_of_memory = refused(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
        "Used 20.30G of 15.75G hbm.\n\nlargest allocations follow"
    )
    known = function("classifier", "training step", here)
    row = compile_function(replace(known, lower=out_of_memory), 8, here)
    assert "Used 20.30G of 15.75G hbm; choose a smaller --classifier.batch-size" in row.note
    assert row.note.endswith("or --classifier.accumulate 2 for the same batch")
    assert row.memory is None and "largest allocations" not in row.note
    row = compile_function(replace(known, lower=refused("INTERNAL: no such tile")), 8, here)
    assert row.note == "does not compile: INTERNAL: no such tile"


@pytest.mark.parametrize("limit", [8, 40, 72, 100, 1000, 5000])
@pytest.mark.parametrize("start", [1, 16, 64])
@pytest.mark.parametrize("unit", [8, 24])
def test_the_search_ends_near_the_largest_batch(limit, start, unit):
    def fits(images):
        assert images % unit == 0
        return images <= limit

    largest, tried = search_largest(fits, start, known=start <= limit, unit=unit)
    assert largest <= limit and largest in (0, start, *tried) and len(tried) <= 13
    above = [images for images in (start, *tried) if images > limit]
    assert largest > 2048 if not above else min(above) - largest <= max(unit, largest / 4)
    assert largest or limit < unit


def test_nothing_fits_is_zero():
    assert search_largest(lambda images: False, 64, known=False) == (0, [32, 16, 8])


def test_the_largest_batch_is_found_by_compiling(here, monkeypatch):
    maps = function("pseudo_masks", "maps", here)
    needed = compile_function(maps, 8, here).memory
    monkeypatch.setattr(compiled, "HALVINGS", 1)
    row = compile_function(maps, 8, replace(here, memory=1.2 * needed), largest=True)
    assert (row.largest, row.tried) == (8, (16,))
    row = compile_function(maps, 16, replace(here, memory=1.2 * needed), largest=True)
    assert (row.largest, row.tried) == (8, (8,)) and "does not fit" in row.note


def test_roofline_takes_the_slowest_resource(here):
    collectives = (Collectives("all-reduce", 1, 0, 3e10), Collectives(SLICES, 1, 0, 1e99))
    seconds = roofline(4e12, 2e11, collectives, here.peak)
    assert seconds == {"operations": 4.0, "memory": 2.0, "collectives": 3.0}  # float32 on a CPU
    assert roofline(None, None, (), here.peak) == {}


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_every_generation_has_memory_and_an_interconnect(kind):
    peak = data_sheet_peak(kind)
    assert peak.memory > 15e9 and 1e11 < peak.interconnect < peak.bandwidth < peak.bfloat16


HLO = """
  %all-reduce.1 = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}) all-reduce(%a, %b), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true
  %all-reduce-start.2 = bf16[10,10]{1,0} all-reduce-start(%c), replica_groups={{0,1},{2,3}}
  %all-reduce-done.2 = bf16[10,10]{1,0} all-reduce-done(%all-reduce-start.2)
  ROOT %gather = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%d), replica_groups=[2,4]<=[8]
  %permute = (s8[5]{0}, s8[5]{0}, u32[], u32[]) collective-permute-start(%e), source_target_pairs={}
  %scatter = pred[6]{0} reduce-scatter(%f), replica_groups={}
  %send = (f32[1,1,128]{2,1,0:T(1,128)}, u32[], token[]) send(%g, %h), is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_x="1"}
  %fusion = f32[9]{0} fusion(%all-reduce.1), calls=%all-reduce-like
"""


def test_collectives_and_their_bytes():
    found = {kind.kind: kind for kind in collectives_of(HLO, 8)}
    assert found["all-reduce"] == Collectives("all-reduce", 2, 64 + 200, 1.5 * 64 + 200)
    assert found["all-gather"] == Collectives("all-gather", 1, 96, 0.75 * 96)
    assert found["collective-permute"] == Collectives("collective-permute", 1, 5, 5)
    assert found["reduce-scatter"] == Collectives("reduce-scatter", 1, 6, 7 * 6)
    assert found[SLICES] == Collectives(SLICES, 1, 512, 512)
    assert len(found) == 5


def test_a_collective_without_groups_is_over_all_devices():
    assert group_size("all-reduce(%a), replica_groups={}", 8) == 8


def test_collectives_of_a_compiled_mean():
    mesh = open_mesh()
    rows = jax.ShapeDtypeStruct(
        (DEVICES, 5),
        jnp.float32,
        sharding=jax.NamedSharding(mesh, jax.P("data")),
    )
    text = jax.jit(lambda rows: rows.mean(0)).lower(rows).compile().as_text()
    sent = 20 * 2 * (DEVICES - 1) / DEVICES
    assert collectives_of(text, DEVICES) == [Collectives("all-reduce", 1, 20, sent)]


@pytest.mark.parametrize("preset", ["phantom", "paper"])
def test_every_stage_of_every_preset_has_its_functions(preset, here):
    found = [(f.stage, f.name) for f in functions_of(preset_of(["--preset", preset]), here)]
    assert len(set(found)) == len(found)
    trainings = {f.stage for f in functions_of(CONFIG, here) if f.is_training}
    assert trainings == {"classifier", "irnet", "segmenter"}
    assert {stage for stage, _ in found} == {
        *("classifier", "cams", "seeds", "irnet", "pseudo_masks", "segmenter", "evaluation")
    }


class Images:
    """Images of noise with labels and masks."""

    fingerprint = "images"

    def __len__(self):
        return 2 * DEVICES

    def __getitem__(self, index):
        generator = np.random.default_rng(int(index))
        return {
            "image_id": f"i{index}",
            "image": generator.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8),
            "labels": np.ones(14, np.int8),
            "masks": np.full((SIDE, SIDE), 1023, np.uint16),
        }


def run_classifier(folder):
    classifier_stage.run(
        CONFIG.classifier, train=Images(), valid=Images(), image_size=SIDE, seed=0, folder=folder
    )


def run_segmenter(folder):
    encoder = CONFIG.classifier.network_spec(SIDE)
    segmenter_stage.run(
        CONFIG.segmenter,
        spec=CONFIG.segmenter.network_spec(encoder),
        encoder=replace(encoder, output_stride=16).build(),
        expert_train=Images(),
        expert_val=Images(),
        pseudo_masks=None,
        images=Images(),
        rho=1.0,
        seed=0,
        folder=folder,
    )


class Lowered(Exception):
    """The program of a stage's first step."""


@pytest.mark.parametrize(
    ("stage", "run"), [("classifier", run_classifier), ("segmenter", run_segmenter)]
)
def test_the_step_that_is_compiled_is_the_runs_own(tmp_path, monkeypatch, here, stage, run):
    def lower(name, step, arguments, *_):
        raise Lowered(step.lower(*arguments).as_text())

    monkeypatch.setattr(loop, "_check_memory", lower)
    with pytest.raises(Lowered) as lowered:
        run(open_stage_folder(tmp_path, stage, 1, {}, {}))
    ahead = function(stage, "training step", here).lower(2 * DEVICES).as_text()
    assert ahead == str(lowered.value)
