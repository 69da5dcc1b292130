"""The report in a browser; needs `pip install '.[browser]'` and Chromium.

    python -m pytest tests/browser/check_report.py [--basetemp=DIR to keep the screenshots]

Not part of the suite, whose tests need no browser: pytest collects this file only when it is named.
"""

import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from experiments.report.overlays import LAYERS, Example
from experiments.report.page import write_report
from experiments.report.plots import plot_iou, plot_rhos

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HEART, EDEMA = PATHOLOGIES.index("Cardiomegaly"), PATHOLOGIES.index("Edema")


def report():
    def entry(value, name="iou"):
        return {name: value, "lower": value - 0.05, "upper": value + 0.05, "n": 7}

    sources = {"run": 0.5, "cam": 0.25, "prior": 0.125, "human": 0.625}
    means = {s: {name: entry(v, "mean") for name in PATHOLOGIES} for s, v in sources.items()}
    ious = dict.fromkeys(PATHOLOGIES, 0.3)
    kinds = ("cam", "irnet", "prior", "prior_labels")
    return {
        "rho": 0.9,
        "phantom": True,
        "pooled": {s: {name: entry(v) for name in PATHOLOGIES} for s, v in sources.items()},
        "mean": {s: entry(v) for s, v in sources.items()},
        "per_image": {"true_pos_only_True": means, "true_pos_only_False": means},
        "hit_rate": {"cam": means["cam"]},
        "n": dict.fromkeys(PATHOLOGIES, 1234),
        "thresholds": dict.fromkeys(PATHOLOGIES, 0.35),
        "classifier": {
            "auroc": dict.fromkeys(OBSERVATIONS, 0.9),
            "n": dict.fromkeys(OBSERVATIONS, 9),
        },
        "pseudo_masks": {**dict.fromkeys(kinds, ious), "means": dict.fromkeys(kinds, 0.3)},
        "rhos": [{"rho": r, **entry(v), "folder": "evaluation-0123456789ab"} for r, v in RHOS],
        "data": {"test": {"images": 200, "fingerprint": "0123456789abcdef" * 4}},
        "settings": {"segmenter": {"steps": 400}},
    }


RHOS = ((0.0, 0.2), (0.9, 0.5), (1.0, 0.4))


def examples():
    """Five test images, of which four have a heart with IoUs of .1 to .9, and a weakly labelled one."""
    rows, columns = np.mgrid[:512, :512]
    chest = (60 + 100 * np.exp(-(((columns - 256) / 160) ** 2))).astype(np.uint8)

    def circle(x, y, radius, *where):
        masks = np.zeros((512, 512, len(PATHOLOGIES)), bool)
        masks[..., where] = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2)[..., None]
        return masks

    def make(name, iou, *where, weak=False):
        keys = ("expert", "reader", "cam", "prediction")
        keys = ("expert", "cam", "seed", "pseudo", "prediction") if weak else keys
        layers = {key: circle(200 + 25 * i, 280, 90 - i, *where) for i, key in enumerate(keys)}
        scores = {PATHOLOGIES[k]: iou for k in where}
        return Example(name, chest, layers, scores, weak)

    hearts = {"middling": 0.5, "best": 0.9, "worst": 0.1, "good": 0.7}
    return [
        *(make(name, iou, HEART) for name, iou in hearts.items()),
        make("edema", 0.6, EDEMA),
        make("weak", 0.4, HEART, EDEMA, weak=True),
    ]


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    figures = {"IoU": folder / "iou.png", "Mean IoU by ρ": folder / "rho.png"}
    plot_iou(figures["IoU"], report())
    plot_rhos(figures["Mean IoU by ρ"], report()["rhos"], 0.9)
    write_report(folder / "report.html", report(), examples(), figures)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, page_path):
    """Open the page offline; fail at the end if the browser reported an error or a request."""
    contexts, complaints = [], []

    def opened(width=1300, height=900, scheme="dark"):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url:.80}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url == page_path.as_uri() or request.url.startswith("data:")
                else complaints.append(f"request: {request.url:.80}")
            ),
        )
        page.goto(page_path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page):
    """The names of the cards one sees, in order."""
    cards = page.locator(".cards .card:visible .xray")
    return [cards.nth(i).get_attribute("aria-label").split()[-1] for i in range(cards.count())]


def enlarged(page):
    return page.locator("dialog[open] figcaption").evaluate("e => e.firstChild.textContent")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1300, 480])
def test_it_fits_and_every_image_loads(open_page, page_path, scheme, width):
    page = open_page(width, 900, scheme)
    page.screenshot(path=page_path.with_name(f"{scheme}-{width}.png"), full_page=True)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    broken = "[...document.images].filter((i) => !(i.complete && i.naturalWidth)).length"
    assert page.evaluate(broken) == 0
    inside = "e => [...e.querySelectorAll('.scroll')].map((t) => t.scrollWidth - t.clientWidth)"
    overflows = page.locator(".pair").evaluate(inside)
    assert len(overflows) == 2 and max(overflows) == 0
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, colour[4:-1].split(","))) < 60) == (scheme == "dark")


def test_a_light_page_can_be_dimmed(open_page):
    page = open_page(scheme="light")
    page.click("#dim")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, colour[4:-1].split(","))) < 60


@pytest.mark.parametrize("digit", range(1, len(LAYERS) + 1))
def test_every_layer_has_a_switch_and_a_key(open_page, digit):
    page, layer = open_page(), LAYERS[digit - 1]
    masks, box = page.locator(f".layer-{layer.key}"), page.locator(f"#show-{layer.key}")
    others = page.locator(f".mask:not(.layer-{layer.key}):visible").count()
    seen = []
    for turn in (None, box.click, lambda: page.keyboard.press(str(digit))):
        if turn:
            turn()
        visible = [masks.nth(i).is_visible() for i in range(masks.count())]
        assert visible == [box.is_checked()] * len(visible) and visible
        seen.append(visible[0])
        assert page.locator(f".mask:not(.layer-{layer.key}):visible").count() == others
    assert seen == [layer.visible, not layer.visible, layer.visible]


def test_choose_a_pathology_then_an_order(open_page):
    page = open_page()
    assert shown(page) == ["middling", "best", "worst", "good", "edema", "weak"]
    page.select_option("#pathology", str(HEART))
    assert shown(page) == ["middling", "best", "worst", "good", "weak"]
    assert page.locator(f'.mask[data-pathology="{EDEMA}"]:visible').count() == 0
    page.select_option("#order", "best")
    assert shown(page) == ["best", "good", "middling", "worst", "weak"]
    page.select_option("#order", "worst")
    assert shown(page) == ["worst", "middling", "good", "best", "weak"]
    page.select_option("#order", "median")
    assert shown(page)[:2] in (["good", "middling"], ["middling", "good"])
    page.select_option("#pathology", str(EDEMA))
    assert shown(page) == ["edema", "weak"]
    page.select_option("#pathology", "")
    page.select_option("#order", "given")
    assert shown(page) == ["middling", "best", "worst", "good", "edema", "weak"]


def test_zoom_by_mouse_and_by_keyboard(open_page, page_path):
    page = open_page()
    page.select_option("#pathology", str(HEART))
    page.select_option("#order", "best")
    page.locator(".card:visible .xray").first.click()
    assert enlarged(page) == "best"
    picture = page.locator("dialog .xray").bounding_box()
    assert min(picture["width"], picture["height"]) > 600
    page.keyboard.press("ArrowRight")
    assert enlarged(page) == "good"
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert enlarged(page) == "weak"  # around the end, into the other set
    mask = page.locator(f'dialog .layer-seed[data-pathology="{HEART}"]')
    assert not mask.is_visible()
    page.keyboard.press("4")
    assert mask.is_visible()
    assert page.locator(f'dialog .mask[data-pathology="{EDEMA}"]:visible').count() == 0
    page.screenshot(path=page_path.with_name("zoom.png"))
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.ariaLabel") == "Enlarge weak"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert enlarged(page) == "best"
    page.locator("dialog .xray").click()
    assert page.locator("dialog[open]").count() == 0
