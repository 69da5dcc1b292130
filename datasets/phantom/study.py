"""One film of one study: a pure function of the seed and of which film it is."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import UInt8

from datasets.phantom.anatomy import sample_build
from datasets.phantom.annotators import EXPERT, SECOND, TRUTH, Contours, draw
from datasets.phantom.drawing import sample_canvas
from datasets.phantom.findings import place_findings, sample_chest, sample_severity
from datasets.phantom.labels import reported_labels, sample_findings, true_labels
from datasets.phantom.render import render

SPLITS = ("train", "valid", "test")
# CheXpert's own numbers first, then some that no split of CheXpert has.
_PATIENTS = {
    "train": (range(1, 64541),),
    "valid": (range(64541, 64741), range(70001, 85001)),
    "test": (range(64741, 65241), range(85001, 100000)),
}


@dataclass(frozen=True)
class FilmId:
    """Which film of which patient."""

    split: str
    patient: int
    study: int
    view: int
    lateral: bool

    @property
    def path(self) -> str:
        """The path that CheXpert's CSV gives."""
        kind = "lateral" if self.lateral else "frontal"
        folder = f"CheXpert-v1.0-small/{self.split}/patient{self.patient:05d}"
        return f"{folder}/study{self.study}/view{self.view}_{kind}.jpg"

    @property
    def image_id(self) -> str:
        """The key that CheXlocalize's JSON uses."""
        return "_".join(self.path.removesuffix(".jpg").split("/")[2:])


@dataclass(frozen=True)
class Film:
    """A film, what it shows, and what is said of it."""

    id: FilmId
    pixels: UInt8[np.ndarray, "h w"]
    sex: str
    age: int
    projection: str
    """AP or PA, empty for a lateral."""
    labels: dict[str, float | None]
    truth: Contours
    expert: Contours
    second: Contours


def film_ids(seed: int, split: str, count: int) -> list[FilmId]:
    """Returns the first films of a split; asking for more does not change them."""
    ids: list[FilmId] = []
    for patient in chain(*_PATIENTS[split]):
        if len(ids) >= count:
            return ids[:count]
        rng = np.random.default_rng([seed, SPLITS.index(split), patient])
        chances = [0.75, 0.2, 0.05] if split == "train" else [1.0, 0.0, 0.0]
        for study in range(1, 2 + int(rng.choice(3, p=chances))):
            kind = rng.random()
            views = [False] if kind < 0.8 else [False, True] if kind < 0.94 else [False, False]
            ids += [
                FilmId(split, patient, study, view, lateral)
                for view, lateral in enumerate(views, 1)
            ]
    raise ValueError(
        f"{split} has patients for {len(ids)} images, asked for {count}; ask for fewer"
    )


def make_film(seed: int, film: FilmId, short_side: int) -> Film:
    """Returns one film.

    A patient keeps sex and build, a study its findings and their severity, whichever view shows them.
    """
    key = [seed, SPLITS.index(film.split), film.patient]
    by_patient = np.random.default_rng([*key, 1])
    by_study = np.random.default_rng([*key, film.study, 2])
    by_film = np.random.default_rng([*key, film.study, film.view, 3])
    by_place = np.random.default_rng([*key, film.study, 5])  # the same on two frontals
    by_reader = np.random.default_rng([*key, film.study, film.view, 4])

    female = bool(by_patient.random() < 0.42)
    build = sample_build(by_patient, female)
    findings = sample_findings(by_study, train=film.split == "train")
    severity = sample_severity(by_study, findings)
    sickness = len(findings)
    ap = bool(by_study.random() < min(0.35 + 0.12 * sickness, 0.9)) and not film.lateral
    age = int(np.clip(by_patient.normal(54, 16) + 2.5 * sickness, 18, 90))
    truth = film.split != "train"
    labels = true_labels(findings) if truth else reported_labels(by_study, findings)

    chest = sample_chest(by_film, build, severity, lateral=film.lateral, ap=ap)
    drawn = place_findings(by_place, chest, severity, findings)
    canvas = sample_canvas(by_film, short_side)
    pixels = render(by_film, chest, drawn, canvas)
    return Film(
        id=film,
        pixels=pixels,
        sex="Female" if female else "Male",
        age=age,
        projection="" if film.lateral else "AP" if ap else "PA",
        labels=labels,
        truth=draw(by_reader, TRUTH, drawn, canvas),
        expert=draw(by_reader, EXPERT, drawn, canvas),
        second=draw(by_reader, SECOND, drawn, canvas),
    )
