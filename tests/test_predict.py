import csv
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import highdicom
import numpy as np
import pytest
from dicoms import write_dicom
from PIL import Image
from small_networks import SEGMENTER, SIDE, STATED
from test_paths import outside

from chexseg_jax.images import letterbox, unletterbox
from chexseg_jax.inference.export import export, load_segmenter
from chexseg_jax.masks import decode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.radiograph import RadiographError, read_jpeg_or_png
from chexseg_jax.radiographs.read import read_radiograph
from datasets.errors import DataError
from experiments.evaluate import main as evaluate
from experiments.predict import main
from experiments.prediction.inputs import find_inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    thresholds = dict.fromkeys(PATHOLOGIES, 0.5) | {"Edema": 0.0, "Cardiomegaly": 1.0}
    export(SEGMENTER.build(), SEGMENTER, folder, **STATED | {"thresholds": thresholds})
    return folder


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    """A PNG of another shape, a JPEG in CheXpert's place, a DICOM file, and two that are broken."""
    folder = tmp_path / "images"
    place = folder / "patient00001" / "study1"
    place.mkdir(parents=True)
    Image.fromarray(picture(100, 70)).save(folder / "a.png")
    Image.fromarray(picture(64, 80, 1)).save(place / "view1_frontal.jpg")
    write_dicom(folder / "c.dcm", picture(50, 60, 2), ImagerPixelSpacing=[0.5, 2.0])
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "text.jpg").write_text("no picture")
    return folder


def predict(model, images, out, *flags):
    with pytest.raises(SystemExit) as ended:
        main([f"--model={model}", "--images", str(images), f"--out={out}", *flags])
    return ended.value.code


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


NAMES = ["a", "c", "patient00001_study1_view1_frontal"]


def test_every_result_of_a_mixed_folder(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, images, out, "--maps", "--dicom-seg", "--batch-size=8") == 3
    masks = json.loads((out / "pred_segmentations.json").read_text())
    assert list(masks) == NAMES and all(list(some) == list(PATHOLOGIES) for some in masks.values())
    segmenter, image = load_segmenter(model), picture(100, 70)[..., None]
    maps = unletterbox(segmenter(letterbox(image, SIDE)[None])[0], 100, 70)
    for k, name in enumerate(PATHOLOGIES):
        expected = maps[..., k] > segmenter.thresholds[k]
        assert (decode_rle(masks["a"][name]) != expected).mean() < 0.001
    assert (
        decode_rle(masks["a"]["Edema"]).all() and not decode_rle(masks["a"]["Cardiomegaly"]).any()
    )
    found = {(row["image_id"], row["finding"]): row for row in rows(out / "findings.csv")}
    assert len(found) == 30
    edema = found["c", "Edema"]
    assert (edema["area_pixels"], edema["area_share"]) == ("3000", "1.000000")
    assert (edema["area_mm2"], edema["spacing"]) == ("3000.0", "ImagerPixelSpacing")
    assert found["a", "Edema"]["area_mm2"] == ""
    failed = rows(out / "failed.csv")
    assert sorted(row["file"].rpartition("/")[2] for row in failed) == ["cut.png", "text.jpg"]
    assert all("no readable JPEG" in row["reason"] for row in failed)
    assert sorted(path.stem for path in (out / "overlays").iterdir()) == NAMES
    assert [path.name for path in (out / "dicom-seg").iterdir()] == ["c.dcm"]
    kept = np.asarray(Image.open(out / "maps" / "a" / "Edema.png"))
    assert kept.shape == (SIDE, SIDE) and kept.dtype == np.uint16
    page = (out / "report.html").read_text()
    assert "3 X-rays; 2 files were left out" in page and "Pooled IoU" not in page
    assert "2 files were left out" in capsys.readouterr().err
    evaluate([f"--gt={out / 'pred_segmentations.json'}", "--pred", str(out / "pred_segmentations.json"),
              f"--out={tmp_path / 'scores'}"])  # fmt: skip


def test_prediction_does_the_photometry_of_the_training(tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    pixels = picture(60, 40) // 4 + 60
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(np.full((50, 50), 90, np.uint8)).save(folder / "b.jpg")  # of JPEG's own levels
    write_dicom(folder / "c.dcm", pixels)
    spec = replace(SEGMENTER, photometry="equalize")
    export(spec.build(), spec, tmp_path / "model", **STATED)
    assert predict(tmp_path / "model", folder, out, "--maps", "--no-overlays") == 0
    segmenter = load_segmenter(tmp_path / "model")
    for name, suffix in {"a": "png", "b": "jpg", "c": "dcm"}.items():
        image = read_radiograph(folder / f"{name}.{suffix}").image
        seen, plain = letterbox(image, SIDE, "equalize"), letterbox(image, SIDE)
        assert (name == "b") == np.array_equal(seen, plain)
        expected = np.rint(segmenter(seen[None])[0, ..., 3] * 65535)
        stored = np.asarray(Image.open(out / "maps" / name / f"{PATHOLOGIES[3]}.png"))
        assert np.abs(stored - expected).max() <= 2
    page = (out / "report.html").read_text()
    assert page.count('class="seen"') == 3 and "&#34;photometry&#34;: &#34;equalize&#34;" in page


def test_a_second_call_does_what_is_missing(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, images / "a.png", out) == 0
    overlay = out / "overlays" / "a.png"
    written = overlay.stat().st_mtime_ns
    journal = out / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"image_id": "c", "fi')  # killed while writing
    assert predict(model, images, out) == 3
    assert overlay.stat().st_mtime_ns == written
    assert list(json.loads((out / "pred_segmentations.json").read_text())) == NAMES
    first = (out / "pred_segmentations.json").read_bytes()
    Image.fromarray(picture(64, 64, 9)).save(images / "a.png")
    assert predict(model, images, out) == 3
    assert overlay.stat().st_mtime_ns > written
    assert (out / "pred_segmentations.json").read_bytes() != first
    assert predict(model, images, out, "--no-overlays") == 2
    assert "another --out" in capsys.readouterr().err


def test_nothing_is_touched_when_nothing_can_start(model, images, tmp_path, capsys):
    assert predict(tmp_path, images, tmp_path / "out") == 2
    assert "no export" in capsys.readouterr().err
    assert predict(model, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert predict(model, images, images) == 2
    assert "other files in it" in capsys.readouterr().err


def test_two_files_are_never_one_result(tmp_path):
    for name in ("x/a_b.png", "x/a/b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(DataError, match="would be called a_b"):
        find_inputs([str(tmp_path / "x")])
    tasks = find_inputs([str(tmp_path / "x" / "*.png"), str(tmp_path / "x" / "a_b.png")])
    assert [task.image_id for task in tasks] == ["a_b"]
    with pytest.raises(DataError, match="no file matches"):
        find_inputs([str(tmp_path / "*.bmp")])


def test_sixteen_bits_are_scaled_and_colours_made_grey(tmp_path):
    values = np.array([[1000, 2000], [3000, 3040]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_jpeg_or_png(tmp_path / "a.png").image[..., 0].tolist() == [[0, 125], [250, 255]]
    colours = np.full((2, 2, 3), 77, np.uint8)
    Image.fromarray(colours).save(tmp_path / "b.png")
    assert read_jpeg_or_png(tmp_path / "b.png").image[..., 0].tolist() == [[77, 77], [77, 77]]


def write_png16(path, values, colors):
    """Write 16-bit values as gray (0), RGB (2), gray with opacity (4) or RGBA (6)."""
    opaque = np.full_like(values, 65535)
    channels = {0: [values], 2: [values] * 3, 4: [values, opaque], 6: [*[values] * 3, opaque]}
    pixels = np.stack(channels[colors], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBB3x", *values.shape[::-1], 16, colors)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


@pytest.mark.parametrize("colors", [0, 2, 4, 6])
def test_twelve_bits_in_sixteen_are_read_with_colors_and_opacity(tmp_path, colors):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    write_png16(tmp_path / "a.png", values, colors)
    found = read_jpeg_or_png(tmp_path / "a.png").image[..., 0]
    np.testing.assert_array_equal(found, np.rint(values * (255 / 4095)))


@pytest.mark.parametrize("orientation", [0, 1, 9])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_an_orientation_that_means_nothing_is_none(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(8, 8)).save(tmp_path / name, exif=exif)
    assert read_jpeg_or_png(tmp_path / name).image.shape == (8, 8, 1)


def test_companions_are_no_x_rays(tmp_path):
    for name in ("a.png", "._a.png", "__MACOSX/b.png", "in/__MACOSX/in/._c.dcm"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for pattern in (str(tmp_path), f"{tmp_path}/**/*"):
        assert [task.image_id for task in find_inputs([pattern])] == ["a"]
    with pytest.raises(DataError, match="no file matches"):
        find_inputs([f"{tmp_path}/**/.*"])


def test_a_result_that_cannot_be_written_ends_no_batch(model, tmp_path, capsys, monkeypatch):
    images, out = tmp_path / "images", tmp_path / "out"
    (images / ("d" * 200)).mkdir(parents=True)
    for name in ("a", "e"):
        write_dicom(images / f"{name}.dcm", picture(30, 30), PatientSex="Male")
    write_dicom(images / "b.dcm", picture(30, 30), without=("SOPInstanceUID", "Modality"))
    for name in (b"c\xff.png", b"d" * 200 + b"/" + b"x" * 100 + b".png"):
        with open(os.fsencode(images) + b"/" + name, "wb") as file:  # noqa: PTH123, no text
            Image.fromarray(picture(16, 12)).save(file, "PNG")
    (images / "f.png").write_text("<html>")
    assert predict(model, images, out, "--dicom-seg", "--batch-size=8") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"1 files were left out and 1 lack a result; {out / 'failed.csv'} says why"
    failed = {row["file"].rpartition("/")[2]: row["reason"] for row in rows(out / "failed.csv")}
    assert list(failed) == ["b.dcm", "f.png"]
    assert "nothing to refer to" in failed["b.dcm"] and " at 0x" not in failed["f.png"]
    masks = json.loads((out / "pred_segmentations.json").read_text())
    assert sorted(masks) == ["a", "b", "c\\udcff", "d" * 200 + "_" + "x" * 100, "e"]
    assert len({row["image_id"] for row in rows(out / "findings.csv")}) == 5
    assert len(list((out / "overlays").iterdir())) == 5
    for name in ("a", "e"):
        assert highdicom.seg.segread(out / "dicom-seg" / f"{name}.dcm").PatientSex in (None, "")
    # What is incomplete is tried again, what is complete is not.
    written = (out / "overlays" / "a.png").stat().st_mtime_ns
    write_dicom(images / "b.dcm", picture(30, 30))

    def fail(path, pixels):
        raise OSError(36, "File name too long", str(path))

    monkeypatch.setattr("experiments.prediction.rendering._write_png", fail)
    assert predict(model, images, out, "--dicom-seg", "--batch-size=8") == 3
    assert (out / "overlays" / "a.png").stat().st_mtime_ns == written
    assert (out / "dicom-seg" / "b.dcm").exists()
    failed = {row["file"].rpartition("/")[2]: row["reason"] for row in rows(out / "failed.csv")}
    assert "b.png: cannot be written" in failed["b.dcm"] and len(failed) == 2


def test_a_terminal_without_utf8_gets_replaced_characters(model, tmp_path):
    images, out = tmp_path / "im\u00e4ges", tmp_path / "\u2192"
    images.mkdir()
    Image.fromarray(picture(16, 12)).save(images / "\u6f22.png")
    command = [
        sys.executable,
        "-m",
        "experiments.predict",
        f"--model={model}",
        f"--images={images}",
    ]
    ended = subprocess.run(
        [*command, f"--out={out}", "--batch-size=8"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode("ascii") == f"1 of 1 X-rays: {tmp_path}/?/report.html\n"
    assert rows(out / "findings.csv")[0]["image_id"] == "\u6f22"


def test_bombs_and_turned_pictures_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(RadiographError, match="pixels"):
        read_jpeg_or_png(path)
    Image.new("1", (12000, 12000)).save(path)
    with pytest.raises(RadiographError, match="12000 x 12000 pixels"):
        read_jpeg_or_png(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(8, 8)).save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(RadiographError, match="rotation"):
        read_jpeg_or_png(tmp_path / "turned.jpg")


FILES = [
    "a...png",
    "....png",
    "~.png",
    "a\\..\\b.png",
    "x\ny.png",
    "=1+1.png",
    "<b>&.png",
    "--out.png",
]
FILES = [
    *FILES,
    "C:x.png",
    "\uff0e\uff0e\uff0fx.png",
    "n" * 230 + ".png",
    "%2e%2e%2fx.png",
    " .png",
]


def test_predictions_of_hostile_names_and_links_stay_in_their_folder(model, tmp_path):
    images, out = tmp_path / "inner" / "images", tmp_path / "inner" / "out"
    images.mkdir(parents=True)
    (tmp_path / "canary").mkdir()
    for path in [*(images / name for name in FILES), tmp_path / "canary" / "secret.png"]:
        with path.open("wb") as file:
            Image.fromarray(picture(16, 12)).save(file, "PNG")
    (images / "link").symlink_to(tmp_path / "canary", target_is_directory=True)
    (images / "link.png").symlink_to(tmp_path / "canary" / "secret.png")
    before = outside(tmp_path, out)
    assert predict(model, images, out, "--maps", "--batch-size=8") == 0
    assert outside(tmp_path, out) == before
    predictions = json.loads((out / "pred_segmentations.json").read_text())
    assert len(predictions) == len(FILES) + 1
    assert len(list((out / "overlays").iterdir())) == len(predictions)
    assert len(list((out / "maps").iterdir())) == len(predictions)
    assert all(path.name != "secret.png" for path in out.rglob("*"))
    assert "<b>&" not in (out / "report.html").read_text()


@pytest.mark.parametrize("name", ["...png", "..png"])
def test_names_of_dots_are_refused(tmp_path, name):
    Image.fromarray(picture(16, 12)).save(tmp_path / name, "PNG")
    for pattern in (str(tmp_path), str(tmp_path / name)):
        with pytest.raises(DataError, match=r"cannot be called '\.+'; rename it"):
            find_inputs([pattern])
