"""Run CheXseg: `python -m experiments.chexseg --rho=0.9`.

Seven stages, each in a folder of its own: classifier, cams, seeds, irnet, pseudo_masks, segmenter,
evaluation. Only those that the result needs are run: `--pseudo cam` needs no seeds and no IRNet, a
teacher no maps either, and `--rho 1` no pseudo-masks. A finished stage is reused; one that was stopped
resumes. Without data the command makes synthetic chests and runs on those. With CheXpert and
CheXlocalize prepared by `python -m datasets`:

    python -m experiments.chexseg --data-dir data --workdir runs/chexpert

On several hosts, or with one process a GPU, start the same command in each, on a shared disk, with
`--distributed`.

Exit codes: 0, done; 1, an error, reported in a sentence; 2, invalid flags; 143 and 130, stopped by
SIGTERM or SIGINT, a training after the step it was in. The same command then resumes.
"""

from experiments.report.build import publish
from experiments.run.cli import managed_run
from experiments.run.cluster import join_cluster
from experiments.run.config import read_arguments
from experiments.run.data import open_data
from experiments.run.pipeline import run_pipeline


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run the stages that its result needs, and write the report."""
    config = read_arguments(__doc__ or "", arguments)
    if config.distributed:
        join_cluster(config.processes)
    with managed_run(config.workdir):
        run = run_pipeline(config, open_data(config))
        if run.evaluation:
            publish(run)
        else:
            print(f"Stages: {', '.join(row['name'] for row in run.stages)}")


if __name__ == "__main__":
    main()
