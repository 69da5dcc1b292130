import jax

from chexseg_jax.runtime import cpu


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    found = cpu.compiler_options.__wrapped__
    assert found() == (cpu.YNNPACK_SUMS if jax.default_backend() == "cpu" else {})
    monkeypatch.setattr(cpu, "YNNPACK_SUMS", {"xla_cpu_no_such_thing": "1"})
    assert found() == {}
