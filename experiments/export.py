"""Export a trained network: `python -m experiments.export --run runs --out segmenter`.

Writes a folder with an Orbax checkpoint, the same weights as safetensors under PyTorch's names, the
whole function as a `jax.export` for CPU, CUDA and TPU, `config.json` and a model card. Use it with

    from chexseg_jax import load_segmenter
    segmenter = load_segmenter("segmenter")
    probabilities = segmenter(segmenter.letterbox(image)[None])

or with `python -m experiments.predict`. The folder appears whole or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import tyro

from chexseg_jax.inference.export import export
from chexseg_jax.models.spec import Kind
from chexseg_jax.runtime.atomic_write import atomic_folder
from chexseg_jax.training.checkpoints import restore
from datasets.errors import DataError
from experiments.prediction.trained import TrainedNetwork, find_trained
from experiments.report.model_card import model_card
from experiments.run.cli import exit_on_errors


@dataclass(frozen=True)
class Config:
    """Export a trained network of a run."""

    run: Path
    """A work folder, or the folder of one stage in it, such as `runs/evaluation-0123456789ab`."""
    out: Path
    """The folder to make."""
    what: Kind = "segmenter"
    """The segmenter, the classifier, or IRNet."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights; bfloat16 halves the files and rounds the weights once."""


def export_run(config: Config) -> TrainedNetwork:
    """Export a network; the folder is renamed into place at the end."""
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise DataError(
            f"{config.out}: already there and not an empty folder; choose another --out"
        )
    trained = find_trained(config.run, config.what)
    model = restore(trained.folder)
    with atomic_folder(config.out) as aside:
        dtype = jnp.dtype(config.dtype)
        export(model, trained.spec, aside, dtype=dtype, **trained.metadata())
        written: dict[str, Any] = json.loads((aside / "config.json").read_text())
        (aside / "README.md").write_text(model_card(written, trained.report()))
    return trained


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line."""
    config = tyro.cli(
        Config, prog="python -m experiments.export", args=arguments, description=__doc__
    )
    with exit_on_errors(DataError, OSError):
        trained = export_run(config)
    size = sum(path.stat().st_size for path in config.out.rglob("*") if path.is_file())
    print(
        f"{config.out}: {config.what} of {trained.folder}, {size / 1e6:.1f} MB; read README.md in it"
    )


if __name__ == "__main__":
    main()
