"""Miniature downloads of CheXpert and CheXlocalize: folders, tables and JSON."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from chexseg_jax.masks import encode_rle

OBSERVED = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,"
    "Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")
DEMOGRAPHICS = ["Sex", "Age", "Frontal/Lateral", "AP/PA"]
HEIGHT, WIDTH = 24, 32


def write_image(path: Path, *, seed: int = 0, mode: str = "L", size=(HEIGHT, WIDTH)) -> None:
    """Write a JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path, quality=80)


def write_table(path: Path, paths: list[str], *, demographics: bool = True, **labels: str) -> None:
    """Write a CSV file in CheXpert's columns; `labels` fills a column of every row."""
    columns = ["Path", *(DEMOGRAPHICS if demographics else []), *OBSERVED]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for name in paths:
            row = {"Path": name, **labels}
            if demographics:
                view = "Lateral" if "lateral" in name else "Frontal"
                row |= {"Sex": "Female", "Age": "61", "Frontal/Lateral": view}
                row["AP/PA"] = "AP" if view == "Frontal" else ""
            table.writerow(row)


def image_paths(first: int, patients: int) -> list[str]:
    """List paths below a split's folder; the first patient has a lateral view too."""
    paths = [f"patient{first + i:05}/study1/view1_frontal.jpg" for i in range(patients)]
    return [*paths, f"patient{first:05}/study1/view2_lateral.jpg"]


SPLITS = {"train": image_paths(1, 5), "valid": image_paths(64541, 4), "test": image_paths(64741, 3)}


def write_chexpert(
    root: Path, name: str = "CheXpert-v1.0-small", splits=("train", "valid")
) -> Path:
    """Write CheXpert as one folder."""
    for split in splits:
        for i, path in enumerate(SPLITS[split]):
            write_image(root / name / split / path, seed=i)
        write_table(
            root / name / f"{split}.csv", [f"{name}/{split}/{path}" for path in SPLITS[split]]
        )
    return root / name


def write_batches(root: Path) -> Path:
    """Write CheXpert in the layout of its full-size download."""
    first = root / "CheXpert-v1.0 batch 1 (validate & csv)"
    for i, path in enumerate(SPLITS["train"]):
        odd = path.startswith(("patient00002", "patient00004"))
        batch = "CheXpert-v1.0 batch 3 (train 2)" if odd else "CheXpert-v1.0 batch 2 (train 1)"
        write_image(root / batch / path, seed=i)
    for i, path in enumerate(SPLITS["valid"]):
        write_image(first / "valid" / path, seed=i)
    for split in ("train", "valid"):
        write_table(first / f"{split}.csv", [f"CheXpert-v1.0/{split}/{f}" for f in SPLITS[split]])
    return root


def write_plus(root: Path) -> Path:
    """Write CheXpert Plus: one table of both splits without labels, PNGs, and two files of labels."""
    columns = "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,report,age,sex,split"
    lines, labels = [columns], []
    for split in ("train", "valid"):
        for i, path in enumerate(SPLITS[split]):
            write_image(root / "PNG" / split / path.replace(".jpg", ".png"), seed=i)
            view = "Lateral" if "lateral" in path else "Frontal"
            name, patient = f"{split}/{path}", path.split("/")[0]
            report = '"NARRATIVE:\nof two lines, quoted"'
            dicom = name.replace("jpg", "dcm")
            lines.append(f"{name},{dicom},{view},AP,{patient},{report},61.0,Female,{split}")
            values = dict.fromkeys(OBSERVED) | {"Edema": 1.0, "Lung Opacity": -1.0, "Fracture": 0.0}
            labels.append(json.dumps({"path_to_image": name, **values}))
    (root / "df_chexpert_plus_240401.csv").write_text("\n".join([*lines, ""]))
    for name in ("findings", "impression"):
        path = root / "chexbert_labels" / f"{name}_fixed.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*labels, ""]))
    return root


def write_annotated_images(root: Path) -> Path:
    """Write CheXlocalize's own images and tables, which have no demographic columns."""
    folder = root / "CheXpert"
    for split, short in (("valid", "val"), ("test", "test")):
        for i, path in enumerate(SPLITS[split]):
            write_image(folder / short / path, seed=i)
        paths = [f"CheXpert-v1.0/{split}/{path}" for path in SPLITS[split]]
        write_table(folder / f"{short}_labels.csv", paths, demographics=False, Edema="1.0")
    return folder


def image_id(path: str) -> str:
    """Compute the id of an image below its split's folder."""
    return path.removesuffix(".jpg").replace("/", "_")


def rectangle(top: int, left: int, bottom: int, right: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """Make a mask that is set from (top, left) to (bottom, right), both included."""
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


HEART, TUBE = rectangle(10, 12, 18, 22), rectangle(2, 5, 20, 7)
EMPTY = np.zeros((HEIGHT, WIDTH), bool)


def write_annotations(root: Path) -> Path:
    """Write the expert's masks, and on the test images a second reader's; the last view has none."""
    folder = root / "CheXlocalize"
    folder.mkdir(parents=True, exist_ok=True)
    expert = {"Cardiomegaly": encode_rle(HEART), "Support Devices": encode_rle(EMPTY)}
    for split, short in (("valid", "val"), ("test", "test")):
        ids = [image_id(path) for path in SPLITS[split][:-1]]
        write_json(folder / f"gt_segmentations_{short}.json", dict.fromkeys(ids, expert))
    second = {ids[0]: {"Support Devices": encode_rle(TUBE)}}
    write_json(folder / "hb_segmentations_test.json", second)
    return folder


def write_json(path: Path, content) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replace text in a file, which must contain it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def below(folder: Path) -> list[str]:
    """List everything below a folder, hidden or not."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
