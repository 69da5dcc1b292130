"""CheXseg, whole: `python -m experiments.chexseg --rho=0.9`.

Seven stages, each in a folder of its own: classify, localize, seed, relate, label, segment, evaluate.
A stage that is finished is used again; one that was stopped goes on. With no data it makes synthetic
chests and runs on those. With CheXpert and CheXlocalize prepared by `python -m datasets`:

    python -m experiments.chexseg --data-dir data --workdir runs/chexpert --rho 0.9
"""

import sys

from chexseg_jax.data import BatchError
from chexseg_jax.networks import WeightsError
from chexseg_jax.tables import TableError
from chexseg_jax.training import NotFinite
from datasets.errors import DataError
from experiments.data import open_data
from experiments.pipeline import Run
from experiments.results import publish
from experiments.settings import STAGES, read_arguments


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs the stages it asks for."""
    config = read_arguments(__doc__ or "", arguments)
    try:
        run = Run(config, open_data(config))
        for name in STAGES[: STAGES.index(config.until) + 1]:
            getattr(run, name)
        if config.until == "evaluate":
            publish(run)
    except (DataError, BatchError, WeightsError, TableError, NotFinite, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
