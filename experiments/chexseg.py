"""CheXseg, whole: `python -m experiments.chexseg --rho=0.9`.

Seven stages, each in a folder of its own: classify, localize, seed, relate, label, segment, evaluate.
A stage that is finished is used again; one that was stopped goes on. With no data it makes synthetic
chests and runs on those. With CheXpert and CheXlocalize prepared by `python -m datasets`:

    python -m experiments.chexseg --data-dir data --workdir runs/chexpert --rho 0.9

On several hosts, or with one process a GPU, start the same command in each, on a shared disk, with
`--distributed`.

Exit codes: 0, done; 1, an error that is said in a sentence; 2, flags that make no sense; 143 and 130,
stopped by SIGTERM or SIGINT, a training after the step it was in. The same command then goes on.
"""

from experiments.report.build import publish
from experiments.run.cli import run_errors_to_exit_codes
from experiments.run.cluster import join_cluster
from experiments.run.config import STAGES, read_arguments
from experiments.run.data import open_data
from experiments.run.pipeline import Run


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs the stages it asks for."""
    config = read_arguments(__doc__ or "", arguments)
    if config.distributed:
        join_cluster(config.processes, config.workdir)
    with run_errors_to_exit_codes(config.workdir):
        run = Run(config, open_data(config))
        for name in STAGES[: STAGES.index(config.until) + 1]:
            getattr(run, name)
        if config.until == "evaluate":
            publish(run)


if __name__ == "__main__":
    main()
