"""Compare run lengths with pycocotools: `python -m tests.with_pycocotools.check_masks`.

Compares 10,000 random masks both ways, then prints median milliseconds on masks of 2320 x 2828, with
an organ's outline and of noise.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from pycocotools import mask as coco

from chexseg_jax.masks import area, decode_rle, encode_rle, runs_of
from tests.random_masks import random_mask

HEIGHT, WIDTH, REPEATS = 2320, 2828, 15


def outline(waves: int) -> np.ndarray:
    """Make one closed, wavy region."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    y, x = y - HEIGHT / 2, x - WIDTH / 2
    return np.hypot(y, x) < 700 + 120 * np.sin(waves * np.arctan2(y, x))


def milliseconds(work: Callable[[], object]) -> float:
    """Measure the median time of a function."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def compare(rng: np.random.Generator) -> None:
    """Compare 10,000 random masks with pycocotools, both ways."""
    for index in range(10_000):
        mask = random_mask(rng, index)
        ours, theirs = encode_rle(mask), coco.encode(np.asfortranarray(mask, np.uint8))
        assert ours["counts"] == theirs["counts"].decode()
        assert np.array_equal(decode_rle(ours), coco.decode(theirs))
        assert area(runs_of(ours)) == coco.area(theirs)
    print("10,000 random masks: equal both ways")


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    compare(rng)
    noise = np.repeat(np.repeat(rng.random((HEIGHT // 8, WIDTH // 7)) < 0.5, 8, 0), 7, 1)
    masks = {"empty": np.zeros((HEIGHT, WIDTH), bool), "smooth": outline(3), "wavy": outline(40)}
    print(f"{'mask':8}{'work':8}{'ours ms':>9}{'coco ms':>9}{'coco/ours':>11}")
    for name, mask in {**masks, "noise": noise}.items():
        ours = encode_rle(mask)
        theirs = coco.encode(np.asfortranarray(mask, np.uint8))
        assert ours["counts"] == theirs["counts"].decode()
        works = {
            "decode": (lambda r=ours: decode_rle(r), lambda t=theirs: coco.decode(t)),
            "encode": (
                lambda m=mask: encode_rle(m),
                lambda m=mask: coco.encode(np.asfortranarray(m, np.uint8)),
            ),
        }
        for work, (ours_run, coco_run) in works.items():
            a, b = milliseconds(ours_run), milliseconds(coco_run)
            print(f"{name:8}{work:8}{a:9.2f}{b:9.2f}{b / a:11.2f}")


if __name__ == "__main__":
    main()
