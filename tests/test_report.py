import base64
import html.parser
import io
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.stage_folder import write_json
from experiments.report.build import expert_points
from experiments.report.overlays import LAYERS, Example, blend_masks, mask_png, outline
from experiments.report.page import write_report
from experiments.report.plots import (
    COLORS,
    SCORE,
    moving_average,
    plot_iou,
    plot_rhos,
    plot_training,
)
from experiments.report.tables import DASH, terminal_table
from experiments.run.config import PHANTOM

HOSTILE = '<script>alert("$x")</script><img src=http://evil.example/x>\'"'


def entry(value, name="iou"):
    return {name: value, "lower": value - 0.05, "upper": value + 0.05}


def report():
    sources = {"run": 0.5, "cam": 0.25, "prior": 0.125, "human": 0.625}
    pooled = {
        source: {name: entry(value + k / 100) for k, name in enumerate(PATHOLOGIES)}
        for source, value in sources.items()
    }
    means = {
        source: {name: {**entry(value, "mean"), "n": 7} for name in PATHOLOGIES}
        for source, value in sources.items()
    }
    ious = {name: 0.3 for name in PATHOLOGIES}
    return {
        "title": "A run",
        "created": "2021-07-07T00:00:00Z",
        "preset": "phantom",
        "rho": 0.9,
        "seed": 3,
        "pseudo": "irnet",
        "phantom": True,
        "settings": {"segmenter": {"steps": 400}},
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
        "data": {"chexpert": {"fingerprint": "abc123", "images": 2000}},
        "classifier": {"auroc": dict.fromkeys(OBSERVATIONS, 0.875), "n": dict.fromkeys(OBSERVATIONS, 9)},
        "pseudo_masks": {
            "cam": ious, "irnet": ious, "prior": ious, "prior_labels": ious,
            "means": {"cam": 0.211, "irnet": 0.322, "prior": 0.133, "prior_labels": 0.244},
        },
        "pooled": pooled,
        "per_image": {"true_pos_only_True": means, "true_pos_only_False": means},
        "hit_rate": {"cam": means["cam"]},
        "mean": {source: entry(value) for source, value in sources.items()},
        "n": {name: 1000 + k for k, name in enumerate(PATHOLOGIES)},
        "sampled": {"images": 2000, "patients": 1800},
        "thresholds": dict.fromkeys(PATHOLOGIES, 0.35),
        "stages": [{"name": "segmenter", "seconds": 12.3, "reused": False, "folder": "segmenter-1"}],
    }  # fmt: skip


def nothing(content):
    """The report with every number gone."""
    if isinstance(content, dict):
        return {key: nothing(value) for key, value in content.items()}
    return None if isinstance(content, float) else content


def example(image_id="patient1", **layers):
    image = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60).astype(np.uint8)
    return Example(image_id, image, layers, {"Cardiomegaly": 0.75})


def square(pathology="Cardiomegaly"):
    masks = np.zeros((40, 60, 10), bool)
    masks[10:30, 20:50, PATHOLOGIES.index(pathology)] = True
    return masks


def page_of(tmp_path, content, examples=(), figures=None):
    path = tmp_path / "report.html"
    write_report(path, content, examples, figures or {})
    assert [file.name for file in tmp_path.glob("*report*")] == ["report.html"]
    return path.read_text("utf-8")


class Reader(html.parser.HTMLParser):
    """Collect the tags, tables and captions of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.rows, self.captions = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "caption" in self.open and "em" not in self.open:
            self.captions[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_well_formed_and_makes_no_request(tmp_path):
    figure = tmp_path / "iou.png"
    plot_iou(figure, report())
    page = page_of(tmp_path, report(), [example(expert=square())], {"IoU": figure})
    reader = Reader(page)
    assert reader.open == []
    links = [v for _, attrs in reader.tags for k, v in attrs.items() if k in ("src", "href")]
    assert len(links) > 5
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)
    policy = next(a["content"] for a in reader.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in reader.all("a")} <= set(ids)


def test_every_table_and_every_number_is_there(tmp_path):
    page = page_of(tmp_path, report())
    reader = Reader(page)
    assert reader.captions == [
        "Pooled IoU at the letterbox",
        "true_pos_only: images where truth and mask are both drawn",
        "All: images where truth or mask is drawn",
        "Hit rate",
        "Classifier: AUROC",
        "Pseudo-masks: pooled IoU",
        "Stages in order",
        "What was read",
        "Software and device",
    ]
    rows = [[text.strip() for text in row] for row in reader.rows]
    cardiomegaly = ["1,001", "0.510 [0.460, 0.560]", "0.260", "0.135", "0.635", "0.35"]
    assert ["Cardiomegaly", *cardiomegaly] in rows
    assert ["Mean", "", "0.500 [0.450, 0.550]", "0.250", "0.125", "0.625", ""] in rows
    assert ["Edema", "0.250 [0.200, 0.300]", "7"] in rows  # hit rate
    assert ["Fracture", "9", "0.875"] in rows
    assert ["Mean of CheXpert's five", "", "0.875"] in rows
    assert ["Mean", "0.211", "0.322", "0.133", "0.244"] in rows
    assert ["segmenter", "12.3 s", "segmenter-1"] in rows
    assert ["chexpert", "2,000", "abc123"] in rows
    assert ["jax", "0.10.2"] in rows
    assert "&#34;steps&#34;: 400" in page


def test_a_bar_starts_at_chance_and_carries_its_interval(tmp_path):
    reader = Reader(page_of(tmp_path, report()))
    styles = [attrs["style"] for attrs in reader.all("b") if "style" in attrs]
    assert styles[0] == "width:50.0%"
    assert styles[-1] == "width:75.0%"  # AUROC 0.875, halfway from 0.75 to 1
    assert reader.all("s")[0]["style"] == "left:45.0%;right:calc(100% - 55.0%)"


@pytest.mark.parametrize("phantom", [True, False])
def test_warnings(tmp_path, phantom):
    page = page_of(tmp_path, {**report(), "phantom": phantom})
    assert ("Synthetic chests: numbers say nothing about patients." in page) == phantom
    assert page.count("Not a medical device") == 2


@pytest.mark.parametrize(
    ("rho", "words"),
    [(0.0, "CAMs as pseudo-masks alone"), (1.0, "from expert masks alone"), (0.4, "ρ = 0.4)")],
)
def test_says_what_the_run_learned_from(tmp_path, rho, words):
    assert words in page_of(tmp_path, {**report(), "rho": rho, "pseudo": "cam"})


def test_hostile_strings_stay_text(tmp_path):
    content = report()
    content |= dict.fromkeys(("title", "created", "preset", "device", "seed"), HOSTILE)
    content["settings"] = {HOSTILE: [HOSTILE]}
    content["versions"] = {HOSTILE: HOSTILE}
    content["data"] = {HOSTILE: {"fingerprint": HOSTILE, "images": 1}}
    content["stages"] = [{"name": HOSTILE, "seconds": 1.0, "reused": True, "folder": HOSTILE}]
    figure = tmp_path / "figure.png"
    plot_iou(figure, content)
    examples = [example(HOSTILE, expert=square())]
    page = page_of(tmp_path, content, examples, {HOSTILE: figure})
    plain = page_of(tmp_path, report(), [example(expert=square())], {"a": figure})
    shapes = [[(tag, sorted(attrs)) for tag, attrs in Reader(p).tags] for p in (page, plain)]
    assert shapes[0] == shapes[1]
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(") >= 12


def test_a_report_without_numbers_shows_dashes(tmp_path):
    content = nothing(report())
    for key in ("pseudo_masks", "stages", "data", "settings", "device"):
        content[key] = None
    content["mean"]["run"]["iou"] = float("nan")
    page = page_of(tmp_path, content)
    rows = [[text.strip() for text in row] for row in Reader(page).rows]
    assert ["Edema", "1,004", "–", "–", "–", "–", "not found"] in rows
    assert ["Mean of CheXpert's five", "", "–"] in rows
    assert "not measured" in page
    assert not re.search(
        r"\b(None|nan|null)\b", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    )
    assert " Edema                          1,004  –" in terminal_table(content)
    plot_iou(tmp_path / "iou.png", content)


def test_without_a_second_reader_there_is_no_column(tmp_path):
    content = report()
    for numbers in (content["pooled"], content["mean"], *content["per_image"].values()):
        numbers.pop("human", None)
    reader = Reader(page_of(tmp_path, content))
    assert [text for row in reader.rows for text in row].count("Human") == 0
    assert "Human" not in terminal_table(content)
    assert max(map(len, terminal_table(content).splitlines())) < max(
        map(len, terminal_table(report()).splitlines())
    )


def test_table_for_the_terminal():
    lines = terminal_table(report()).splitlines()
    assert len(lines) == 17
    assert "95 % interval over 2,000 images (1,800 patients)" in lines[16]
    missing = report()
    missing["thresholds"]["Edema"] = None
    assert terminal_table(missing).endswith("so never drawn: Edema")
    assert max(map(len, lines)) <= 100
    assert lines[1].split() == [
        "Pooled", "IoU", "n", "This", "run", "[95", "%]", "CAM", "Prior", "Human",
    ]  # fmt: skip
    assert lines[3].split()[2:] == [
        "1,000",
        "0.500",
        "[0.450,",
        "0.550]",
        "0.250",
        "0.125",
        "0.625",
    ]
    assert lines[14].split() == ["Mean", "0.500", "[0.450,", "0.550]", "0.250", "0.125", "0.625"]


def pixels_of(attrs):
    kind, content = attrs["src"].split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    assert image.format == {"data:image/png": "PNG", "data:image/jpeg": "JPEG"}[kind]
    return image


def test_the_image_that_the_network_saw_is_on_a_key(tmp_path):
    small = np.full((32, 32), 99, np.uint8)
    shown = replace(example(expert=square()), seen=small)
    reader = Reader(page_of(tmp_path, report(), [shown, example("patient2", expert=square())]))
    (image,) = [a for a in reader.all("img") if a.get("class") == "seen"]
    assert pixels_of(image).size == (32, 32)
    (box,) = [a for a in reader.all("input") if a["id"] == "show-seen"]
    assert box["data-digit"] == "0" and "checked" not in box
    assert 'show-seen"' not in page_of(tmp_path, report(), [example(expert=square())])


def test_gallery_holds_one_image_a_layer_and_pathology(tmp_path):
    cam = square() | square("Edema")
    examples = [example(expert=square(), cam=cam), example("patient2", prediction=square() & False)]
    reader = Reader(page_of(tmp_path, report(), examples))
    images = reader.all("img")
    assert [pixels_of(attrs).size for attrs in images] == [(60, 40)] * 5
    masks = [(a["class"], a["data-pathology"]) for a in images if "data-pathology" in a]
    assert masks == [("mask layer-expert", "1"), ("mask layer-cam", "1"), ("mask layer-cam", "4")]
    assert images[0]["alt"] == (
        "Chest X-ray patient1. Expert: Cardiomegaly; CAM: Cardiomegaly, Edema."
    )
    assert images[-1]["alt"] == "Chest X-ray patient2. Prediction: nothing."
    switches = [a["id"] for a in reader.all("input")]
    assert switches == ["show-expert", "show-cam", "show-prediction"]
    assert [a["data-digit"] for a in reader.all("input")] == ["1", "3", "6"]
    assert [a["data-score"] for a in reader.all("li")] == ["0.7500", "0.7500"]
    assert [a["value"] for a in reader.all("option")][:3] == ["", "1", "4"]


def test_mask_is_drawn_where_it_lies():
    layer = LAYERS[-1]
    mask = square()[..., 1]
    drawn = np.asarray(Image.open(io.BytesIO(mask_png(mask, layer))).convert("RGBA"))
    color = list(layer.color)
    assert drawn[20, 35].tolist() == [*color, layer.opacity]
    assert drawn[10, 20].tolist() == drawn[11, 48].tolist() == [*color, 255]
    assert drawn[13, 23].tolist() == [*color, layer.opacity]
    assert drawn[9, 35].tolist() == [0, 0, 0, 110]
    assert drawn[8, 35, 3] == drawn[9, 19, 3] == drawn[0, 0, 3] == 0
    assert (drawn[..., 3] == 255).sum() == 20 * 30 - 14 * 24


def test_a_picture_holds_the_layers_that_a_page_opens_with():
    drawn = blend_masks(example(prediction=square(), reader=square("Edema")))
    grey = np.repeat(example().image[..., None], 3, -1)
    assert drawn.shape == (40, 60, 3)
    assert (drawn[10, 20:50] == LAYERS[-1].color).all()
    inside, share = drawn[20, 35], LAYERS[-1].opacity / 255
    mixed = (1 - share) * grey[20, 35] + share * np.array(LAYERS[-1].color)
    assert np.abs(inside - mixed).max() <= 1
    assert (drawn[:9] == grey[:9]).all() and (drawn[:, :19] == grey[:, :19]).all()


def test_weakly_labelled_images_are_a_set_of_their_own(tmp_path):
    weak = Example("w", example().image, {"seed": square()}, {"Edema": 0.25}, weak=True)
    page = page_of(tmp_path, report(), [example("t", expert=square()), weak])
    reader = Reader(page)
    assert [a["class"] for a in reader.all("section") if "class" in a].count("set") == 2
    test, weak_set = page.split("<h3>")[1:]
    assert test.startswith("Test images") and "Enlarge t" in test and "Enlarge w" not in test
    assert weak_set.startswith("Weakly labelled images") and "Enlarge w" in weak_set
    alone = page_of(tmp_path, report(), [example(expert=square())])
    assert alone.count("<h3>") == 1


def rhos():
    return [
        {"rho": r, **entry(v), "folder": f"evaluation-{r}"} for r, v in ((0.0, 0.25), (0.9, 0.5))
    ]


def test_runs_of_another_rho_stand_side_by_side(tmp_path):
    rows = [
        [t.strip() for t in row]
        for row in Reader(page_of(tmp_path, report() | {"rhos": rhos()})).rows
    ]
    assert ["ρ = 0.0", "0.250 [0.200, 0.300]", "evaluation-0.0"] in rows
    assert ["ρ = 0.9 (this run)", "0.500 [0.450, 0.550]", "evaluation-0.9"] in rows
    alone = page_of(tmp_path, report() | {"rhos": rhos()[1:]})
    assert "Other shares" not in alone


def test_rho_plot_marks_this_run(tmp_path):
    plot_rhos(tmp_path / "one.png", rhos(), 0.9)
    plot_rhos(tmp_path / "none.png", rhos(), 0.5)
    wanted = [int(COLORS["run"][i : i + 2], 16) for i in (1, 3, 5)]
    filled, empty = ((draw(tmp_path / n) == wanted).all(-1).sum() for n in ("one.png", "none.png"))
    assert filled > empty + 20 > 40
    plot_rhos(tmp_path / "lost.png", [{"rho": 0.5, "iou": None}], 0.5)


def test_outline_closes_at_the_border_of_the_image():
    edge = outline(np.ones((7, 9), bool))
    assert edge[:3].all() and edge[:, -3:].all()
    assert not edge[3:-3, 3:-3].any()


def test_an_example_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match=r"patient1: layer 'expert' has shape \(4, 4, 10\)"):
        example(expert=np.zeros((4, 4, 10), bool))
    with pytest.raises(ValueError, match="layer 'crf' must be one of"):
        example(crf=square())
    with pytest.raises(ValueError, match="score of 'Fracture', which is no pathology"):
        Example("patient1", np.zeros((4, 4), np.uint8), {}, {"Fracture": 0.5})


def test_smooth_keeps_a_line_straight_and_its_length():
    values = np.arange(200.0)
    assert moving_average(values)[5:-5].tolist() == values[5:-5].tolist()
    assert moving_average(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]
    assert moving_average(np.array([])).size == 0


def draw(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has(pixels, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == wanted).all(-1).any())


def test_iou_plot_draws_every_source_there_is(tmp_path):
    path = tmp_path / "plot.png"
    content = report()
    content["pooled"]["teacher"] = content["pooled"]["cam"]
    plot_iou(path, content)
    assert all(has(draw(path), color) for color in COLORS.values())
    del content["pooled"]["human"]
    plot_iou(path, content)
    assert not has(draw(path), COLORS["human"])


def test_training_plot_has_a_panel_a_stage(tmp_path):
    path = tmp_path / "plot.png"
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 50)]
    lost = [{"step": 1, "loss": float("nan")}, {"step": 9, "score": 9.0}]
    plot_training(path, {"classifier": rows, "irnet": lost})
    two = draw(path)
    assert has(two, COLORS["run"]) and not has(two, SCORE)
    plot_training(path, {name: [*rows, {"step": 50, "score": 0.5}] for name in "abcd"})
    four = draw(path)
    assert has(four, SCORE)
    assert four.shape[0] == 2 * two.shape[0] and four.shape[1] * 2 == two.shape[1] * 3
    plot_training(path, {})
    assert (draw(path) == 255).all()


def points():
    gain = {"mean": -0.05, "lower": -0.08, "upper": -0.02}
    return [
        {"method": "full", "experts": 20, "mean": entry(0.36, "mean"), "difference": None},
        {"method": "teacher", "experts": 20, "mean": entry(0.41, "mean"), "difference": gain},
        {"method": "all masks", "experts": None, "mean": entry(0.46, "mean"), "difference": None},
    ]


def test_the_curve_over_numbers_of_expert_masks_has_a_table(tmp_path):
    page = page_of(tmp_path, report() | {"experts": points()})
    rows = [[text.strip() for text in row] for row in Reader(page).rows]
    assert ["20", "teacher", "0.410 [0.360, 0.460]", "+0.050 [+0.020, +0.080]"] in rows
    assert ["20", "full", "0.360 [0.310, 0.410]", DASH] in rows
    assert [DASH, "all masks", "0.460 [0.410, 0.510]", DASH] in rows
    assert "worth what" not in page_of(tmp_path, report())


def test_a_curve_is_shown_only_beside_runs_of_its_kind(tmp_path, capsys):
    config = replace(PHANTOM, workdir=tmp_path, data_dir=(tmp_path / "data",))
    run = SimpleNamespace(config=config)
    assert expert_points(run) == []
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "experts.png").write_bytes(b"")
    curve = {"settings": asdict(replace(config, rho=0.9, experts=(20, 40))), "points": points()}
    write_json(folder / "experts.json", curve)
    assert expert_points(run) == json.loads(json.dumps(points()))
    assert expert_points(SimpleNamespace(config=replace(config, seed=18))) == []
    (folder / "experts.json").write_text("{")
    assert expert_points(run) == [] and str(folder) in capsys.readouterr().err
