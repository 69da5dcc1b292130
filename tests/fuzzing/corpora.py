"""Valid files of every kind, from which mutated files are made."""

import io
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from chexseg_jax.masks import encode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.weights.safetensors import write_safetensors
from tests.chexpert_trees import image_paths, write_table
from tests.dicoms import write_dicom
from tests.test_torch_checkpoint import archive, state, stream, tensor

Corpus = list[tuple[str, bytes]]
"""Files with the suffix that each needs."""

HEIGHT, WIDTH = 24, 32


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def pictures() -> Corpus:
    def saved(image: Image.Image, form: str, **options) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    grey, colour = Image.fromarray(noise(HEIGHT, WIDTH)), Image.fromarray(noise(HEIGHT, WIDTH, 3))
    upright, text = Image.Exif(), PngImagePlugin.PngInfo()
    upright[0x0112] = 1
    text.add_text("a", "text")
    text.add_itxt("b", "text", zip=True)
    text.add_text("c", "text", zip=True)
    deep = Image.fromarray(noise(HEIGHT, WIDTH).astype(np.uint16) * 257)
    jpegs = [
        saved(grey, "JPEG"),
        saved(colour, "JPEG", exif=upright, dpi=(72, 72), comment=b"c", icc_profile=b"p" * 200),
        saved(colour.convert("CMYK"), "JPEG"),
        saved(colour, "JPEG", progressive=True),
    ]
    pngs = [
        saved(grey, "PNG", pnginfo=text, exif=upright, icc_profile=b"p" * 200),
        saved(colour, "PNG", dpi=(72, 72)),
        saved(colour.convert("RGBA"), "PNG"),
        saved(colour.convert("P"), "PNG", transparency=3),
        saved(grey.convert("LA"), "PNG"),
        saved(grey.convert("1"), "PNG"),
        saved(deep, "PNG"),
        saved(grey, "PNG", save_all=True, append_images=[grey]),
    ]
    return [*((".jpg", jpeg) for jpeg in jpegs), *((".png", png) for png in pngs)]


def masks() -> Corpus:
    square_mask = np.zeros((HEIGHT, WIDTH), bool)
    square_mask[4:20, 8:11] = True
    rle, empty = encode_rle(square_mask), encode_rle(np.zeros_like(square_mask))
    speckled = encode_rle(noise(HEIGHT, WIDTH) > 128)
    square = [[[4, 4], [20.5, 4], [20, 18], [4, 18]], [[1, 1]]]
    contents = [
        {"a": {"Cardiomegaly": rle, "Edema": empty, "Airspace Opacity": speckled}},
        {"a": {"Edema": speckled}, "b": {"Support Devices": rle}},
        {"a": {"img_size": [HEIGHT, WIDTH], "Cardiomegaly": square, "Edema": [[[0, 0], [5, 9]]]}},
        {"a": {"img_size": [HEIGHT, WIDTH]}},
        {"a": {name: rle for name in PATHOLOGIES}},
    ]
    return [(".json", json.dumps(content).encode()) for content in contents]


def tables() -> Corpus:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        write_table(
            path, [f"CheXpert-v1.0/train/{film}" for film in image_paths(1, 3)], Edema="-1.0"
        )
        full = path.read_bytes()
        write_table(path, image_paths(1, 2), demographics=False, Cardiomegaly="1.0")
        bare = path.read_bytes()
    thresholds = ["threshold,task", *(f"0.{k},{name}" for k, name in enumerate(PATHOLOGIES))]
    one = {name: encode_rle(np.eye(6, 5, k=-k) > 0) for k, name in enumerate(PATHOLOGIES)}
    return [
        (".labels.csv", full),
        (".labels.csv", bare),
        (".thresholds.csv", "\n".join(thresholds).encode()),
        (".thresholds.json", json.dumps([k / 10 for k in range(10)]).encode()),
        (".predictions.json", json.dumps({"a": one}).encode()),
    ]


def weights() -> Corpus:
    values = np.arange(12, dtype=np.float32)
    options = {
        "conv.weight": tensor("0", (3, 4), (4, 1), 12),
        "turned": tensor("0", (2,), (3,), 12),
    }
    zipped = state(**options, half=tensor("1", (2,), (1,), 2, kind="HalfStorage"))
    old = state(
        first=tensor("b", (3,), (1,), 3, legacy=True),
        second=tensor("a", (2,), (1,), 2, kind="DoubleStorage", legacy=True),
    )
    parts = [(2, np.array([7.0, 8.0])), (3, np.array([1, 2, 3], np.float32))]
    inner = b"\x80\x02}(X\x0a\x00\x00\x00state_dict}(" + b"X\x01\x00\x00\x00a"
    inner += tensor("0", (3,), (1,), 12) + b"uu."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        metadata = {"normalization": '{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}'}
        arrays = {"a": values.reshape(3, 4), "b": np.zeros((0, 2)), "c": values.astype(np.float16)}
        write_safetensors(path, arrays, metadata)
        tensors = path.read_bytes()
        half = {"0": values, "1": np.zeros(2, np.float16)}
        zips = [archive(path, zipped, half).read_bytes()]
        zips.append(archive(path, inner, {"0": values}).read_bytes())
    streams = [stream(old, ["a", "b"], parts)]
    return [(".safetensors", tensors), *((".pth", content) for content in zips + streams)]


def dicoms() -> Corpus:
    deep = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = (
        [256, 0, 16],
        (257 * np.arange(255, -1, -1)).astype("<u2").tobytes(),
    )
    same = mock.patch("tests.dicoms.generate_uid", lambda: "1.2.3")  # files are the same every time
    with tempfile.TemporaryDirectory() as folder, same:
        path = Path(folder) / "a.dcm"
        written = [
            write_dicom(path, noise(16, 16), ImagerPixelSpacing=[0.5, 2.0]).read_bytes(),
            write_dicom(
                path,
                deep,
                bits=12,
                WindowCenter=[2000, 1],
                WindowWidth=[400, 2],
                RescaleSlope=2,
                RescaleIntercept=-9,
                PixelPaddingValue=0,
            ).read_bytes(),
            write_dicom(path, noise(16, 16), VOILUTSequence=[table]).read_bytes(),
            write_dicom(path, deep.astype(np.int16), bits=16, PixelRepresentation=1).read_bytes(),
            write_dicom(path, deep, bits=12, PhotometricInterpretation="MONOCHROME1").read_bytes(),
        ]
        again = pydicom.dcmread(path)
        again.compress("1.2.840.10008.1.2.5")  # run lengths
        again.save_as(path)
        written.append(path.read_bytes())
        again.decompress()
        again.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        again.save_as(path, implicit_vr=True, little_endian=True)
        written.append(path.read_bytes())
    return [(".dcm", content) for content in written]
