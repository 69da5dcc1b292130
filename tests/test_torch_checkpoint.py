"""Files of `torch.save`, written opcode by opcode: valid, damaged and hostile ones."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexseg_jax.weights.torch_checkpoint import MAGIC, TorchFileError, read_torch

STOP = b"."
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key, size, kind="FloatStorage", legacy=False):
    tail = b"N" if legacy else b""
    kind = b"ctorch\n" + kind.encode() + b"\n"
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(size) + tail + b"tQ"


def tensor(key, shape, strides, size, offset=0, kind="FloatStorage", legacy=False):
    arguments = storage(key, size, kind, legacy) + number(offset)
    arguments += numbers(*shape) + numbers(*strides) + b"\x89" + ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(**items):
    body = b"".join(text(key) + value for key, value in items.items())
    return (
        b"\x80\x02" + ORDERED + b"q\x00(" + body + b"u" + b"}" + text("_metadata") + b"Nsb" + STOP
    )


def archive(path, program, storages=(), **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        for key, values in dict(storages).items():
            file.writestr(f"archive/data/{key}", np.asarray(values).tobytes())
        file.writestr("archive/version", "3\n")
    return path


def refused(path, message):
    with pytest.raises(TorchFileError, match=message) as caught:
        read_torch(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_by_hand(tmp_path):
    values = np.arange(12, dtype=np.float32)
    parameter = b"ctorch._utils\n_rebuild_parameter\n("
    parameter += tensor("0", (2,), (1,), 12, offset=10) + b"\x88" + ORDERED + b"tR"
    program = state(
        whole=tensor("0", (3, 4), (4, 1), 12),
        transposed=tensor("0", (2, 3), (1, 4), 12, offset=1),
        scalar=tensor("1", (), (), 1, kind="LongStorage"),
        half=tensor("2", (2,), (1,), 2, kind="BFloat16Storage"),
        parameter=parameter,
        empty=tensor("3", (0, 5), (5, 1), 0),
        epoch=number(-7),
        rate=b"G" + struct.pack(">d", 0.25),
        names=b"](" + text("a") + text("é") + b"e",
        step=b"\x8a\x05" + (2**34).to_bytes(5, "little"),
    )
    storages = {
        "0": values,
        "1": np.int64(5),
        "2": np.asarray([1.5, 2], jnp.bfloat16),
        "3": np.zeros(0, np.float32),
    }
    read = read_torch(archive(tmp_path / "a.pth", program, storages))
    np.testing.assert_array_equal(read["whole"], values.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], [[1, 5, 9], [2, 6, 10]])
    np.testing.assert_array_equal(read["parameter"], [10, 11])
    np.testing.assert_array_equal(read["half"].astype(np.float32), [1.5, 2])
    assert read["scalar"].shape == () and read["scalar"] == 5
    assert read["empty"].shape == (0, 5)
    assert (read["epoch"], read["rate"], read["names"], read["step"]) == (
        -7,
        0.25,
        ["a", "é"],
        2**34,
    )
    with pytest.raises(ValueError, match="read-only"):
        read["transposed"][0] = 1


def stream(program, keys, storages, magic=MAGIC):
    head = [magic, 1001, {"little_endian": True, "protocol_version": 1001}]
    content = b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps(keys, 2)
    for size, values in storages:
        content += struct.pack("<q", size) + np.asarray(values).tobytes()
    return content


def test_a_stream_by_hand(tmp_path):
    program = state(
        first=tensor("b", (3,), (1,), 3, legacy=True),
        second=tensor("a", (2,), (1,), 2, kind="DoubleStorage", legacy=True),
    )
    path = tmp_path / "old.pth"
    parts = [(2, np.array([7.0, 8.0])), (3, np.array([1, 2, 3], np.float32))]
    path.write_bytes(stream(program, ["a", "b"], parts))
    read = read_torch(path)
    np.testing.assert_array_equal(read["first"], [1, 2, 3])
    np.testing.assert_array_equal(read["second"], [7, 8])
    for content, message in (
        (stream(program, ["a", "b"], parts, magic=MAGIC + 1), "neither"),
        (stream(program, ["a"], parts), "does not match"),
        (stream(program, ["a", "b"], parts)[:-1], "beyond the end"),
        (stream(program, ["a", "b"], [(9, parts[0][1]), parts[1]]), "not of the size"),
    ):
        path.write_bytes(content)
        refused(path, message)


class Called:
    """An object that is pickled as a call of a name that only PyTorch has."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return getattr(sys.modules["torch._utils"], self.name), self.arguments


class Pickler(pickle.Pickler):
    """PyTorch's pickler: storages are written as persistent ids."""

    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_of_torch_save(tmp_path, monkeypatch, protocol):
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = lambda *_: None
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def tensor(offset, shape, strides):
        storage = ("storage", torch.FloatStorage, "0", "cpu", 6)
        arguments = (storage, offset, shape, strides, False, OrderedDict())
        return Called("_rebuild_tensor_v2", *arguments)

    content = {
        "state_dict": OrderedDict(a=tensor(0, (2, 3), (3, 1)), b=tensor(1, (2,), (3,))),
        "long": "é" * 300,
        "epochs": {1, 2},
        "step": 2**40,
        "digest": b"abc",
        "names": ["a", "a", ("b",)],
        "seed": np.int64(3),
    }
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(content)
    path = archive(tmp_path / "a.pth", buffer.getvalue(), {"0": np.arange(6, dtype=np.float32)})
    read = read_torch(path)
    np.testing.assert_array_equal(read["state_dict"]["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["state_dict"]["b"], [1, 4])
    assert (read["long"], read["step"]) == (content["long"], content["step"])
    assert read["names"] == content["names"]


def test_lightnings_hyperparameters_become_inert(tmp_path):
    namespace = b"cargparse\nNamespace\n)\x81}" + text("lr") + number(1) + b"sb"
    program = state(hyper_parameters=namespace, x=tensor("0", (1,), (1,), 1))
    read = read_torch(archive(tmp_path / "a.ckpt", program, {"0": np.float32([4])}))
    assert not vars(read["hyper_parameters"])
    np.testing.assert_array_equal(read["x"], [4])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_a_pickle_that_calls_the_system_is_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    refused(archive(tmp_path / "a.pth", pickle.dumps(Hostile(), protocol)), "opcode|asks for|proto")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Hostile(), protocol))
    refused(tmp_path / "b.pth", "opcode|asks for|proto")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["posix system", "builtins eval", "torch.nn Linear", "a b"])
def test_every_other_name_is_refused_by_name(tmp_path, name):
    module, function = name.split()
    program = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"(" + text("true") + b"tR."
    refused(archive(tmp_path / "a.pth", program), f"'{module}.{function}', which is refused")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (tensor("0", (5,), (1,), 4), "beyond its storage"),
        (tensor("0", (2, 2), (3, 1), 4), "beyond its storage"),
        (tensor("0", (2,), (1,), 4, offset=3), "beyond its storage"),
        (tensor("0", (1000, 1000), (0, 0), 4), "beyond its storage"),
        (tensor("0", (-1,), (1,), 4), "natural numbers"),
        (tensor("0", (2,), (-1,), 4, offset=1), "natural numbers"),
        (tensor("0", (2,), (1, 1), 4), "not made of"),
        (tensor("0", (5,), (1,), 5), "16 bytes, not 20"),
        (tensor("1", (4,), (1,), 4), "'1' is missing"),
        (tensor("0", (4,), (1,), 4, kind="ComplexFloatStorage"), "ComplexFloatStorage"),
        (text("storage") + b"Q", "does not name a storage"),
        (tensor("0", (4,), (1,), 4) + text("b") + tensor("0", (1,), (1,), 1), "two sizes"),
        (b"K\x01" + b"}b", "has none"),
        (b"h\x07", "damaged"),
    ],
)
def test_inconsistent_tensors_are_refused(tmp_path, item, message):
    refused(archive(tmp_path / "a.pth", state(a=item), {"0": np.ones(4, np.float32)}), message)


def test_inconsistent_archives_are_refused(tmp_path):
    program, storages = state(a=tensor("0", (4,), (1,), 4)), {"0": np.ones(4, np.float32)}
    path = tmp_path / "a.pth"
    refused(archive(path, program, storages, compression=zipfile.ZIP_DEFLATED), "compressed")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights.npy", b"")
    refused(path, "no single")
    content = archive(path, program, storages).read_bytes()
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    entry = content.index(b"PK\x01\x02", entry + 1)
    huge = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content[: entry + 20] + huge + content[entry + 28 :])
    refused(path, "more bytes than the file has")
    path.write_bytes(content.replace(np.ones(4, np.float32).tobytes(), bytes(16)))
    refused(path, "damaged")
    content = archive(path, program, storages).read_bytes()
    for length in (40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path, "zip archive cut short; fetch it again")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Virus scan warning</html>", "HTML or XML page"),
        (b"\xef\xbb\xbf\n  <HTML><head>", "HTML or XML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b'{"message": "Not Found"}', "JSON, not weights"),
        (b"\x1f\x8b\x08\x00", "compressed archive; unpack it"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"weights", "opcode"),
    ],
)
def test_what_is_downloaded_in_place_of_weights_is_called_what_it_is(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refused(path, message)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_damaged_files_load_or_raise_one_error(tmp_path_factory, where, byte, length):
    program = state(a=tensor("0", (2, 2), (2, 1), 4), b=number(3), c=b"](" + text("x") + b"e")
    content = bytearray(stream(program, ["0"], [(4, np.ones(4, np.float32))]))
    content[where % len(content)] = byte
    path = tmp_path_factory.mktemp("damage") / "a.pth"
    path.write_bytes(content if length % 2 else content[: length % len(content)])
    try:
        read_torch(path)
    except TorchFileError as error:
        assert "a.pth" in str(error)
