"""Compare settings over seeds of the whole pipeline: `python -m tests.variants FLAGS --variants ...`.

    python -m tests.variants --rho 1 --variants "" "--segmenter.loss dice" "--photometry median"

Each variant is the flags of `python -m experiments.chexseg` with a few more, and runs once with every
one of `SEEDS`: classifier, expert masks drawn, segmenter. Intervals are over seeds and patients;
differences from the first variant are paired. With `--maps` the classifier's maps are judged by the
hidden masks of phantoms, as `python -m tests.maps` does it.
"""

import sys
from dataclasses import asdict, replace

from chexseg_jax.evaluation.metrics import (
    Counts,
    hierarchical_intervals,
    mean_of,
    patients_of,
)
from chexseg_jax.evaluation.scoring import read_counts
from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS
from chexseg_jax.runtime.stage_folder import StageFolder
from experiments.comparison.output import signed
from experiments.report.tables import format_interval, format_score
from experiments.run.cli import managed_run
from experiments.run.config import Config, read_arguments
from experiments.run.data import Data, open_data, with_experts
from experiments.run.pipeline import made, run_pipeline
from tests.maps import cams_of, judge, upsampled

SEEDS = (17, 18, 19)


def score_maps(config: Config, data: Data, classifier: StageFolder) -> str:
    """Return the label-gated IoU and the hit rate of the maps of a classifier, on hidden masks."""
    found = judge(upsampled(cams_of(config, classifier.path)), data, config.image_size)
    return f"{found.hidden:.3f} and {found.hits:.2f}"


def compare(given: list[str], variants: list[str], maps: bool) -> None:
    """Run what is missing of every variant and seed, and print a table."""
    first: list[Counts] = []
    print("| variant | AUROC | maps: IoU and hit rate | test IoU | less the first |")
    print("| --- | --- | --- | --- | --- |")
    for variant in variants:
        base = read_arguments(str(__doc__), [*given, *variant.split()])
        data = open_data(replace(base, experts=()))
        patients = patients_of(data.test.image_ids)
        runs: list[Counts] = []
        aurocs, judged = [], []
        for seed in SEEDS:
            config = replace(base, seed=seed)
            drawn = with_experts(data, config)
            run = run_pipeline(config, drawn)
            classifier, evaluation = made(run.classifier), made(run.evaluation)
            scores = classifier.manifest["auroc"]
            aurocs.append(mean_of([scores[name] for name in COMPETITION_OBSERVATIONS]))
            if maps:
                judged.append(score_maps(config, drawn, classifier))
            runs.append(read_counts(evaluation.path / "counts.npz")["run"][1])
            print(f"{variant or 'as it is'}, seed {seed}: {evaluation.path}", file=sys.stderr)
        mean = hierarchical_intervals(runs, patients=patients)[1]
        less = hierarchical_intervals(runs, first, patients=patients)[1] if first else None
        first = first or runs
        columns = [", ".join(f"{value:.3f}" for value in aurocs), ", ".join(judged)]
        columns += [f"{format_score(mean.mean)} {format_interval(asdict(mean))}", signed(less)]
        print("|", " | ".join([variant or "as it is", *columns]), "|", flush=True)


def split_variants(given: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the flags of all variants, and each variant's own."""
    if "--variants" not in given:
        return given, [""]
    at = given.index("--variants")
    return given[:at], given[at + 1 :]


def main() -> None:
    """Parse the flags and compare."""
    given, variants = split_variants(sys.argv[1:])
    maps = "--maps" in given
    given = [flag for flag in given if flag != "--maps"]
    with managed_run(read_arguments(str(__doc__), given).workdir):
        compare(given, variants, maps)


if __name__ == "__main__":
    main()
