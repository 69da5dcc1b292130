from chexseg_jax import devices


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    found = devices.compiler_options.__wrapped__
    assert found() == devices.ON_CPUS  # the tests run on CPUs, with an XLA that knows it
    monkeypatch.setattr(devices, "ON_CPUS", {"xla_cpu_no_such_thing": "1"})
    assert found() == {}
