"""CheXlocalize's evaluation against a full decoding by pycocotools, and how much faster it is.

    pip install pycocotools && python tests/with_pycocotools/check_evaluation.py [--images 668]

The other side does what `eval.py` must do for its per-image table and no more: ten masks an image,
decoded on both sides to 2320 x 2828 pixels, intersections and unions counted over pixels. Its reading of
JSON and its bootstrap are left out, ours are counted.
"""

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from chexseg_jax.pathologies import PATHOLOGIES
from experiments.evaluate import main as evaluate

HEIGHT, WIDTH = 2320, 2828


def draw(generator: np.random.Generator, spread: float) -> dict[str, object]:
    """An ellipse with a rough outline, as experts' polygons and models' masks have; or nothing."""
    if generator.random() < 0.3:
        return empty()
    y, x = generator.uniform(0.3, 0.7, 2)
    rows = np.arange(HEIGHT)[:, None] / HEIGHT - y - spread
    columns = np.arange(WIDTH)[None] / WIDTH - x
    angles = 0.01 * generator.standard_normal(WIDTH).cumsum() / np.sqrt(np.arange(1, WIDTH + 1))
    mask = (rows / 0.2) ** 2 + (columns / 0.15) ** 2 + angles < 1
    return plain(coco.encode(np.asfortranarray(mask.astype(np.uint8))))


def empty() -> dict[str, object]:
    """A mask of nothing."""
    return plain(coco.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F")))


def plain(rle: dict[str, object]) -> dict[str, object]:
    """The same with its counts as text."""
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def decoded(gt: Path, pred: Path) -> tuple[float, np.ndarray]:
    """Seconds and IoUs of decoding everything."""
    truths, drawn = json.loads(gt.read_text()), json.loads(pred.read_text())
    started, rows = time.perf_counter(), []
    for image in sorted(truths):
        row = []
        for name in PATHOLOGIES:
            one, other = coco.decode(truths[image][name]), coco.decode(drawn[image][name])
            both, either = np.logical_and(one, other).sum(), np.logical_or(one, other).sum()
            row.append(both / either if one.any() and other.any() else np.nan)
        rows.append(row)
    return time.perf_counter() - started, np.array(rows)


def main() -> None:
    """Draws, evaluates both ways, and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=668)
    images = parser.parse_args().images
    generator = np.random.default_rng(17)
    # A few dozen drawings are dealt to all images: drawing them is not what is measured.
    deck = [[draw(generator, spread) for _ in range(40)] for spread in (0.0, 0.02)]
    with tempfile.TemporaryDirectory() as folder:
        gt, pred, out = (Path(folder) / name for name in ("gt.json", "pred.json", "out"))
        for path, drawings in zip((gt, pred), deck, strict=True):
            picks = generator.integers(0, len(drawings), (images, len(PATHOLOGIES)))
            path.write_text(
                json.dumps(
                    {
                        f"patient{i:05}_study1_view1_frontal": {
                            name: drawings[pick]
                            for name, pick in zip(PATHOLOGIES, row, strict=True)
                        }
                        for i, row in enumerate(picks)
                    }
                )
            )
        started = time.perf_counter()
        evaluate(["--gt", str(gt), "--pred", str(pred), "--out", str(out)])
        ours = time.perf_counter() - started
        theirs, values = decoded(gt, pred)
        with (out / "iou_results_per_cxr.csv").open() as file:
            table = [[row[name] for name in PATHOLOGIES] for row in csv.DictReader(file)]
        mine = np.array([[float(cell or "nan") for cell in row] for row in table])
        np.testing.assert_allclose(mine, values, rtol=1e-12)
    print(f"{images} images: decoding {theirs:.1f} s, run lengths {ours:.2f} s in all, equal IoUs")
    print(f"{theirs / ours:.0f} times as fast")


if __name__ == "__main__":
    main()
