"""Small files that claim to be huge are refused before that much memory is allocated."""

import json
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from dicoms import write_dicom
from test_safetensors import entry, packed
from test_torch_checkpoint import archive, state, tensor

from chexseg_jax.masks import MaskError, decode_rle
from chexseg_jax.radiographs.dicom import read_dicom
from chexseg_jax.radiographs.radiograph import RadiographError, read_content, read_jpeg_or_png
from chexseg_jax.weights.safetensors import SafetensorsError, read_safetensors
from chexseg_jax.weights.torch_checkpoint import TorchFileError, read_torch
from datasets.chexlocalize.annotations import rasterise
from datasets.chexpert.csv_table import Row
from datasets.chexpert.images import ListedImage, read_gray_jpeg
from datasets.errors import DataError

MEMORY = 2**25
"""The limit of memory for a refusal, bytes."""


def chunk(kind, body, length=None):
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body) if length is None else length) + kind + body + checksum


def png(*chunks, width=8, height=8):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((8 + 1) * 8)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + rows + chunk(b"IEND", b"")


def jpeg(height, width):
    """A JPEG whose header states a size that the file does not hold."""
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes([1, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0)


def film(path):
    row = Row(2, "patient1", "study1", path.name, "Male", 50, "AP", (0,) * 14)
    return ListedImage(row, "train.csv", str(path), str(path.parent.resolve()), path.stat().st_size)


def refused(read, path, kind, message):
    """Check that the error names the file and that Python allocated little memory."""
    tracemalloc.start()
    with pytest.raises(kind, match=message) as caught:
        read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.name in str(caught.value)
    assert most < MEMORY


BOMB = zlib.compress(bytes(2**26), 9)
PICTURES = {
    "png size": (png(width=100_000, height=100_000), "more than [0-9]+ pixels"),
    "png size just too large": (png(width=16_384, height=8_193), "8193 x 16384 pixels"),
    "png text": (png(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), "too large"),
    "png old text": (png(chunk(b"zTXt", b"a\0\0" + BOMB)), "too large"),
    "png chunk length": (png(chunk(b"tEXt", b"a\0b", length=2**32 - 1)), "no readable"),
    "png profile": (png(chunk(b"iCCP", b"a\0\0" + BOMB)), "too large"),
    "jpeg size": (jpeg(65_535, 65_535), "more than [0-9]+ pixels"),
    "jpeg size just too large": (jpeg(8_193, 16_384), "8193 x 16384 pixels"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(tmp_path, name):
    content, message = PICTURES[name]
    path = tmp_path / "bomb"
    path.write_bytes(content)
    refused(read_jpeg_or_png, path, RadiographError, message)
    refused(lambda path: read_gray_jpeg(film(path)), path, DataError, "truncated or no JPEG")


def test_what_is_no_file_or_too_large_a_one_is_not_read(tmp_path):
    with pytest.raises(RadiographError, match="is not a file"):
        read_content(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30 + 1)  # sparse
    refused(read_jpeg_or_png, tmp_path / "large", RadiographError, "exceed the limit")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 65_535, "Columns": 65_535}, "65535 x 65535 pixels, where"),
        ({"Rows": 11_585, "Columns": 11_585, "BitsAllocated": 32}, "of 32 bits"),
        ({"Rows": 8_192, "Columns": 8_192, "BitsAllocated": 65_528}, "of 65528 bits"),
        ({"SamplesPerPixel": 3}, "3 values a pixel"),
        ({"NumberOfFrames": 2**31 - 1}, "frames"),
    ],
)
def test_dicom_sizes(tmp_path, tags, message):
    path = write_dicom(tmp_path / "bomb.dcm", np.zeros((16, 16), np.uint16), bits=16, **tags)
    refused(read_dicom, path, RadiographError, message)


@pytest.mark.parametrize("name", [b"\x08\x00\x60\x00CS", b"\x02\x00\x10\x00UI"])
def test_a_dicom_element_longer_than_the_file(tmp_path, name):
    path = write_dicom(tmp_path / "bomb.dcm", np.zeros((16, 16), np.uint8))
    content = path.read_bytes()
    huge = name[:4] + b"UN\0\0" + (2**32 - 16).to_bytes(4, "little")
    path.write_bytes(content.replace(content[content.index(name) :][:8], huge, 1))
    refused(read_dicom, path, RadiographError, "bomb.dcm")


def test_a_zip_bomb_for_a_checkpoint(tmp_path):
    program = state(a=tensor("0", (2**24,), (1,), 2**24))
    path = tmp_path / "bomb.pth"
    zeros = {"0": np.zeros(2**24, np.float32)}
    archive(path, program, zeros, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    assert path.stat().st_size < 2**20
    refused(read_torch, path, TorchFileError, "is compressed")
    content = archive(path, program, {"0": np.zeros(4, np.float32)}).read_bytes()
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02"))
    huge = struct.pack("<II", 2**26, 2**26)
    path.write_bytes(content[: at + 20] + huge + content[at + 28 :])
    refused(read_torch, path, TorchFileError, "more bytes than the file has")


def test_safetensors_lengths(tmp_path):
    path = tmp_path / "bomb.safetensors"
    for length in (2**63, 2**64 - 1, 100_000_000):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        refused(read_safetensors, path, SafetensorsError, "header too large|invalid header length")
    header = {"a": entry("F32", (2**40,), (0, 2**42))}
    path.write_bytes(packed(json.dumps(header).encode(), bytes(8)))
    refused(read_safetensors, path, SafetensorsError, "not fully covered")


def test_masks():
    for size in ([2**15, 2**15], [2**62, 4], [1, 2**28 + 1]):
        with pytest.raises(MaskError, match="exceeds the limit"):
            decode_rle({"size": size, "counts": "0"})
        with pytest.raises(MaskError, match="exceeds the limit"):
            rasterise({"img_size": size, "Edema": [[[0, 0], [1, 1]]]})


def test_ten_large_polygons_are_not_held_at_once(tmp_path):
    names = ["Edema", "Atelectasis", "Cardiomegaly", "Consolidation", "Support Devices"]
    contours = {name: [[[0, 0], [9, 9], [0, 9]]] for name in names}
    tracemalloc.start()
    bits = rasterise({"img_size": [2048, 2048], **contours})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bits[8, 2] > 0
    assert most < 8 * bits.size  # two bytes of the result, of its part and of the shifted part
