"""Safetensors: bytes by hand, round trips, and malformed headers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexseg_jax.weights.safetensors import (
    DTYPES,
    SafetensorsError,
    read_safetensors,
    write_safetensors,
)


def packed(header, numbers=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_bytes_by_hand(tmp_path):
    numbers = np.array([1.5, -2], "<f4").tobytes() + bytes([1, 0, 1])
    header = {
        "__metadata__": {"made": "by hand"},
        "flags": entry("BOOL", (3, 1), (8, 11)),
        "weights": entry(),
    }
    path = tmp_path / "hand.safetensors"
    path.write_bytes(packed(header, numbers))
    tensors, metadata = read_safetensors(path)
    np.testing.assert_array_equal(tensors["weights"], np.array([1.5, -2], np.float32))
    np.testing.assert_array_equal(tensors["flags"], [[True], [False], [True]])
    assert metadata == {"made": "by hand"}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    )
)
def test_round_trips(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("round") / "state.safetensors"
    state = {
        key: np.random.default_rng(0).integers(0, 2, shape).astype(DTYPES[dtype])
        for key, (dtype, shape) in plan.items()
    }
    write_safetensors(path, state, {"kind": "test"})
    tensors, metadata = read_safetensors(path)
    assert tensors.keys() == state.keys()
    assert metadata == {"kind": "test"}
    for key, tensor in tensors.items():
        assert tensor.dtype == state[key].dtype and tensor.shape == state[key].shape
        np.testing.assert_array_equal(tensor, state[key])


def test_transposed_arrays_keep_their_values(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "a.safetensors", {"kernel": kernel})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "a.safetensors")[0]["kernel"], kernel)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"abc", "header too small"),
        (b"<!DOCTYPE html><html>Sign in</html>", "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"error": "Repository not found"}', "JSON, not weights"),
        ((2**62).to_bytes(8, "little") + b"{}", "header too large"),
        (packed(b"{nonsense"), "invalid JSON"),
        (packed(b"[" * 100_000), "invalid JSON"),
        (packed([]), "invalid JSON"),
        (packed(b'{"a":1,"a":2}'), "invalid JSON"),
        (packed({"__metadata__": {"a": 1}}), "invalid JSON"),
        (packed({"a": entry()}, bytes(4)), "not fully covered"),
        (packed({"a": entry(shape=(3,))}, bytes(8)), "invalid shape"),
        (packed({"a": entry(shape=(2**40, 2**40), offsets=(0, 8))}, bytes(8)), "overflow"),
        (packed({"a": entry(shape=(-2, -1))}, bytes(8)), "invalid JSON"),
        (packed({"a": entry(shape=(True, 2))}, bytes(8)), "invalid JSON"),
        (packed({"a": entry(dtype="F8")}, bytes(8)), "invalid JSON"),
        (packed({"a": entry(dtype="F8_E4M3", shape=(8,))}, bytes(8)), "of type F8_E4M3"),
        (packed({"a": {"dtype": "F32"}}, bytes(8)), "invalid JSON"),
        (packed({"a": entry(offsets=(-8, 0))}, b""), "invalid JSON"),
        (packed({"a": entry(), "b": entry()}, bytes(8)), "invalid offset"),
        (packed({"a": entry()}, bytes(12)), "not fully covered"),
    ],
)
def test_malformed_files_are_refused_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError, match=message) as caught:
        read_safetensors(path)
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dtype_that_weights_do_not_use_is_refused(tmp_path):
    with pytest.raises(SafetensorsError, match="complex64"):
        write_safetensors(tmp_path / "a", {"a": np.zeros(2, np.complex64)})
    write_safetensors(tmp_path / "b", {"b": np.asarray(jnp.ones(3, jnp.bfloat16))})
    assert read_safetensors(tmp_path / "b")[0]["b"].dtype == jnp.bfloat16
