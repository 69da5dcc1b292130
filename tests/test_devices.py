import jax

from chexseg_jax import devices


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    found = devices.compiler_options.__wrapped__
    assert found() == (devices.ON_CPUS if jax.default_backend() == "cpu" else {})
    monkeypatch.setattr(devices, "ON_CPUS", {"xla_cpu_no_such_thing": "1"})
    assert found() == {}
