"""Compare `experiments.evaluate` with a full decoding by pycocotools, in values and in speed.

    pip install pycocotools && python tests/with_pycocotools/check_evaluation.py [--images 668]

The reference does what `eval.py` does for its per-image table and no more: ten masks an image, decoded
to 2320 x 2828 pixels, intersections and unions counted over pixels. Its JSON reading and its bootstrap
are not timed, ours are.
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


def random_rle(generator: np.random.Generator, spread: float) -> dict[str, object]:
    """Make the run lengths of an ellipse with a rough outline, or of an empty mask."""
    if generator.random() < 0.3:
        return empty_rle()
    y, x = generator.uniform(0.3, 0.7, 2)
    rows = np.arange(HEIGHT)[:, None] / HEIGHT - y - spread
    columns = np.arange(WIDTH)[None] / WIDTH - x
    angles = 0.01 * generator.standard_normal(WIDTH).cumsum() / np.sqrt(np.arange(1, WIDTH + 1))
    mask = (rows / 0.2) ** 2 + (columns / 0.15) ** 2 + angles < 1
    return as_text(coco.encode(np.asfortranarray(mask.astype(np.uint8))))


def empty_rle() -> dict[str, object]:
    """Encode an empty mask."""
    return as_text(coco.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F")))


def as_text(rle: dict[str, object]) -> dict[str, object]:
    """Convert counts from bytes to text."""
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def decoded(gt: Path, pred: Path) -> tuple[float, np.ndarray]:
    """Decode everything; return the seconds and the IoUs."""
    targets, predictions = json.loads(gt.read_text()), json.loads(pred.read_text())
    started, rows = time.perf_counter(), []
    for image in sorted(targets):
        row = []
        for name in PATHOLOGIES:
            one, other = coco.decode(targets[image][name]), coco.decode(predictions[image][name])
            both, either = np.logical_and(one, other).sum(), np.logical_or(one, other).sum()
            row.append(both / either if one.any() and other.any() else np.nan)
        rows.append(row)
    return time.perf_counter() - started, np.array(rows)


def main() -> None:
    """Evaluate random masks both ways and print the ratio of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=668)
    images = parser.parse_args().images
    generator = np.random.default_rng(17)
    # Forty masks each are reused over all images: making them is not timed.
    pool = [[random_rle(generator, spread) for _ in range(40)] for spread in (0.0, 0.02)]
    with tempfile.TemporaryDirectory() as folder:
        gt, pred, out = (Path(folder) / name for name in ("gt.json", "pred.json", "out"))
        for path, rles in zip((gt, pred), pool, strict=True):
            picks = generator.integers(0, len(rles), (images, len(PATHOLOGIES)))
            path.write_text(
                json.dumps(
                    {
                        f"patient{i:05}_study1_view1_frontal": {
                            name: rles[pick] for name, pick in zip(PATHOLOGIES, row, strict=True)
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
        ours_ious = np.array([[float(cell or "nan") for cell in row] for row in table])
        np.testing.assert_allclose(ours_ious, values, rtol=1e-12)
    print(f"{images} images: decoding {theirs:.1f} s, run lengths {ours:.2f} s in all, equal IoUs")
    print(f"{theirs / ours:.0f} times as fast")


if __name__ == "__main__":
    main()
