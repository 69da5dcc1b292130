import jax


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    found = sharding.compiler_options.__wrapped__
    assert found() == (sharding.ON_CPUS if jax.default_backend() == "cpu" else {})
    monkeypatch.setattr(sharding, "ON_CPUS", {"xla_cpu_no_such_thing": "1"})
    assert found() == {}
