"""One image of a study with its labels and annotations, a function of the seed and its id."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import UInt8

from datasets.phantom.anatomy import frontal_chest, lateral_chest, sample_build
from datasets.phantom.annotators import EXPERT, SECOND, TRUTH, Contours, annotate
from datasets.phantom.drawing import sample_canvas
from datasets.phantom.findings import place_findings, sample_severity
from datasets.phantom.labels import reported_labels, sample_findings, true_labels
from datasets.phantom.render import render

CHEXPERT = "CheXpert-v1.0-small"
SPLITS = ("train", "valid", "test")
# CheXpert's patient numbers first, then numbers outside CheXpert.
_PATIENTS = {
    "train": (range(1, 64541),),
    "valid": (range(64541, 64741), range(70001, 85001)),
    "test": (range(64741, 65241), range(85001, 100000)),
}


@dataclass(frozen=True)
class ImageId:
    """The split, patient, study and view of an image."""

    split: str
    patient: int
    study: int
    view: int
    lateral: bool

    @property
    def path(self) -> str:
        """The path in CheXpert's CSV."""
        kind = "lateral" if self.lateral else "frontal"
        folder = f"{CHEXPERT}/{self.split}/patient{self.patient:05d}"
        return f"{folder}/study{self.study}/view{self.view}_{kind}.jpg"

    @property
    def image_id(self) -> str:
        """The key in CheXlocalize's JSON."""
        return "_".join(self.path.removesuffix(".jpg").split("/")[2:])


@dataclass(frozen=True)
class Phantom:
    """An image with its metadata, labels and annotations."""

    id: ImageId
    pixels: UInt8[np.ndarray, "h w"]
    sex: str
    age: int
    projection: str
    """AP or PA; empty on a lateral view."""
    labels: dict[str, float | None]
    truth: Contours
    expert: Contours
    second: Contours


def image_ids(seed: int, split: str, count: int) -> list[ImageId]:
    """List the first images of a split; they do not depend on the count."""
    ids: list[ImageId] = []
    for patient in chain(*_PATIENTS[split]):
        if len(ids) >= count:
            return ids[:count]
        rng = np.random.default_rng([seed, SPLITS.index(split), patient])
        chances = [0.75, 0.2, 0.05] if split == "train" else [1.0, 0.0, 0.0]
        for study in range(1, 2 + int(rng.choice(3, p=chances))):
            kind = rng.random()
            views = [False] if kind < 0.8 else [False, True] if kind < 0.94 else [False, False]
            ids += [
                ImageId(split, patient, study, view, lateral)
                for view, lateral in enumerate(views, 1)
            ]
    raise ValueError(
        f"{split} has patients for {len(ids)} images, but {count} are requested; request fewer"
    )


def make_phantom(seed: int, image: ImageId, short_side: int) -> Phantom:
    """Make one image.

    Sex and build depend on the patient, findings and their severity on the study, not on the view.
    """
    key = [seed, SPLITS.index(image.split), image.patient]
    by_patient = np.random.default_rng([*key, 1])
    by_study = np.random.default_rng([*key, image.study, 2])
    by_image = np.random.default_rng([*key, image.study, image.view, 3])
    by_location = np.random.default_rng([*key, image.study, 5])  # the same on two frontals
    by_annotator = np.random.default_rng([*key, image.study, image.view, 4])

    female = bool(by_patient.random() < 0.42)
    build = sample_build(by_patient, female)
    findings = sample_findings(by_study, train=image.split == "train")
    severity = sample_severity(by_study, findings)
    ap = bool(by_study.random() < min(0.35 + 0.12 * len(findings), 0.9)) and not image.lateral
    age = int(np.clip(by_patient.normal(54, 16) + 2.5 * len(findings), 18, 90))
    is_train = image.split == "train"
    labels = reported_labels(by_study, findings) if is_train else true_labels(findings)

    if image.lateral:
        chest = lateral_chest(by_image, build, severity)
    else:
        chest = frontal_chest(by_image, build, severity, ap=ap)
    placed = place_findings(by_location, chest, severity, findings)
    canvas = sample_canvas(by_image, short_side)
    pixels = render(by_image, chest, placed, canvas)
    return Phantom(
        id=image,
        pixels=pixels,
        sex="Female" if female else "Male",
        age=age,
        projection="" if image.lateral else "AP" if ap else "PA",
        labels=labels,
        truth=annotate(by_annotator, TRUTH, placed, canvas),
        expert=annotate(by_annotator, EXPERT, placed, canvas),
        second=annotate(by_annotator, SECOND, placed, canvas),
    )
