import jax
import jax.numpy as jnp
import pytest

from experiments.run import compile_cache
from experiments.run.compile_cache import machine_id, persistent_compilation_cache


def compile_anew():
    """Compile a function that is in no cache in memory."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(5.0)))


def test_what_is_compiled_is_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "MIN_COMPILE_SECONDS", 0.0)
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path / "compiled" / machine_id()
    with persistent_compilation_cache(tmp_path):
        first = compile_anew()
    entries = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    assert entries
    with persistent_compilation_cache(tmp_path):
        assert compile_anew() == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == entries
    assert jax.config.jax_compilation_cache_dir == before


def test_an_entry_cut_short_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "MIN_COMPILE_SECONDS", 0.0)
    with persistent_compilation_cache(tmp_path):
        first = compile_anew()
    for path in (tmp_path / "compiled").rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:40])
    with (
        persistent_compilation_cache(tmp_path),
        pytest.warns(UserWarning, match="persistent compilation cache"),
    ):
        assert compile_anew() == first


def test_another_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
    other = tmp_path / "cpuinfo"
    other.write_text("processor : 0\nflags : fpu sse2\n")
    mine = machine_id()
    monkeypatch.setattr(compile_cache, "CPUINFO", other)
    assert machine_id() != mine
