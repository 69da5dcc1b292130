"""Free memory by control groups, and what a compiled function says it needs."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from chexseg_jax.runtime.memory import free_bytes, free_in_cgroups, needed_bytes


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_limits_of_every_group_above_count(tmp_path):
    memberships, root = tmp_path / "cgroup", tmp_path / "fs"
    memberships.write_text("0::/user/job\n")
    stat = "anon 5\nactive_file 30\ninactive_file 70\nshmem 9"
    group(root / "user", memory__max=1000, memory__current=400, memory__stat=stat)
    group(root / "user/job", memory__max="max", memory__current=300)
    assert list(free_in_cgroups(memberships, root)) == [700]
    group(root / "user/job", memory__max=350)
    assert sorted(free_in_cgroups(memberships, root)) == [50, 700]


def test_groups_of_version_1_and_of_a_container(tmp_path):
    memberships, root = tmp_path / "cgroup", tmp_path / "fs"
    memberships.write_text("9:name=systemd:/\n4:cpu,memory:/docker/0123\n0::/\n")
    files = {"memory.limit_in_bytes": 900, "memory.usage_in_bytes": 1000}
    group(root / "memory", **files)  # the container's own group is the root that it sees
    assert list(free_in_cgroups(memberships, root)) == [0]
    assert list(free_in_cgroups(tmp_path / "none", root)) == []


def test_an_accelerator_tells_what_it_has():
    stats = {"bytes_limit": 100, "bytes_in_use": 30}
    for told, free in ((stats, 70), (None, None), ({"bytes_in_use": 1}, None)):
        device = Mock(spec=jax.Device, platform="gpu")
        device.memory_stats.return_value = told
        assert free_bytes(device) == free


def test_a_compiled_function_says_what_it_needs_and_this_machine_what_it_has():
    def product(x):
        return jnp.sin(x) @ jnp.cos(x.T)

    compiled = jax.jit(product).lower(jnp.zeros((256, 512))).compile()
    needed = needed_bytes(compiled)
    assert 4 * 256 * 256 <= needed <= 4 * 4 * 256 * 512
    (cpu,) = jax.local_devices(backend="cpu")[:1]
    assert free_bytes(cpu) == pytest.approx(free_bytes(cpu), rel=0.5) and free_bytes(cpu) > needed
