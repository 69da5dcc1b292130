"""Compare settings of seeds, IRNet and the walk: `python -m tests.walks FLAGS --variants ...`.

    python -m tests.walks --experts 999 --variants "" "--irnet.radius 3" "--pseudo-masks.beta 10"

Each variant is the flags of `python -m experiments.chexseg` with a few more. Walked maps, masked by
the image's labels, are judged as `python -m tests.maps` does it, beside the maps that they start from.
The column of expert-train is for choosing settings, the hidden masks are the judge of the choice.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chexseg_jax.stages.pseudo_masks import walked_maps
from chexseg_jax.training.checkpoints import restore, spec_of
from experiments.run.cli import managed_run
from experiments.run.config import read_arguments
from experiments.run.data import open_data
from experiments.run.pipeline import Run, made, run_pipeline
from tests.maps import cams_of, judge, upsampled
from tests.variants import split_variants


def walked(run: Run, infer: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the walked maps of a run's IRNet as a function of images."""
    irnet = made(run.irnet)
    maps = walked_maps(
        run.config.pseudo_masks, restore(irnet.path), spec_of(irnet.path).normalization
    )
    return lambda images: maps(infer(images)[0], images)


def main() -> None:
    """Train what is missing, and print a row for each variant."""
    given, variants = split_variants(sys.argv[1:])
    workdir = read_arguments(str(__doc__), given).workdir
    print("| settings | expert-train | hidden | hit rate | seconds |")
    print("| --- | --- | --- | --- | --- |")
    with managed_run(workdir):
        for number, variant in enumerate(variants):
            config = read_arguments(str(__doc__), [*given, *variant.split()])
            config, started = replace(config, pseudo="irnet", until="irnet"), time.monotonic()
            data = open_data(config)
            run = run_pipeline(config, data)
            infer = cams_of(config, made(run.classifier).path)
            kinds = {"maps": upsampled(infer)} if number == 0 else {}
            for name, maps_of in {**kinds, variant or "as it is": walked(run, infer)}.items():
                found = judge(maps_of, data, config.image_size)
                scores = f"{found.experts:.3f} | {found.hidden:.3f} | {found.hits:.2f}"
                print(f"| {name} | {scores} | {time.monotonic() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()
