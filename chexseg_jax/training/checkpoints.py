"""Checkpoints: the only module that saves and restores with Orbax.

Parameters, statistics and optimiser are separate items, so that inference restores only what it needs.
Two steps are kept: the newest, to go on from, and the best, to use.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers as managers

from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.sharding import local_mesh, replicated

ITEMS = ("parameters", "statistics", "optimiser")


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


class Checkpoints:
    """The checkpoints of one training, in one folder."""

    def __init__(self, folder: Path, *, training: bool = True) -> None:
        """Opens the folder; unless `training` nothing is made or deleted."""
        policy = managers.AnyPreservationPolicy(
            [managers.LatestN(1), managers.BestN(get_metric_fn=_score, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_score,
            create=training,
            cleanup_tmp_directories=training,
        )
        self._folder = folder
        with explain_write_errors(folder):
            self._manager = ocp.CheckpointManager(
                folder.absolute(), options=options, item_names=ITEMS
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with explain_write_errors(self._folder):
            self._manager.close()

    def latest(self) -> int | None:
        """Returns the newest step, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step of the highest score; of equal ones the latest."""
        return self._manager.best_step()

    def best_score(self) -> dict[str, float]:
        """Returns the best step and its score, at the end; what is left of other steps is deleted."""
        with explain_write_errors(self._folder):
            self._manager.wait_until_finished()
        step = self._manager.best_step()
        if step is None:
            raise FileNotFoundError(f"{self._manager.directory} holds no checkpoint")
        # Orbax deletes file by file: a process killed in that leaves half a step.
        for other in {*self._manager.all_steps()} - {step, self.latest()}:
            self._manager.delete(other)
        return {"best_step": float(step), "score": float(self._manager.metrics(step)["score"])}

    def save(self, step: int, items: dict[str, Any], score: float) -> None:
        """Saves one step with its score, in the background.

        Raises:
            NotWritten: the disk is full or read-only; of the step before, if it was found out late.
        """
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with explain_write_errors(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics={"score": score})

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Returns the named items of a step, each onto its abstract tree and that tree's shardings."""
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**wanted)))


def abstract(tree: Any, sharding: Sharding) -> Any:
    """Returns the shapes and types of a tree, to be restored with one sharding."""

    def leaf(value: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def write_tree(folder: Path, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, to be used and not to be trained on."""
    with explain_write_errors(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)


def read_tree(folder: Path, tree: Any, sharding: Sharding) -> Any:
    """Returns what `write_tree` wrote, onto an abstract tree and a sharding."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), abstract(tree, sharding))


def split_state(model: nnx.Module, wanted: nnx.filterlib.Filter) -> tuple[nnx.GraphDef, Any, Any]:
    """Returns a model as its structure, the variables wanted, and the rest."""
    structure, *states = nnx.split(model, wanted, ...)
    return structure, states[0], states[1]


def to_pure_dicts(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Returns a model as its structure, its parameters and its statistics, as nested dictionaries."""
    structure, parameters, statistics = split_state(model, nnx.Param)
    return structure, nnx.to_pure_dict(parameters), nnx.to_pure_dict(statistics)


def merge_state(
    model: nnx.Module, parameters: dict[str, Any], statistics: dict[str, Any]
) -> nnx.Module:
    """Returns a model, which may be abstract, with what `split` gave of another."""
    structure, old_parameters, old_statistics = split_state(model, nnx.Param)
    nnx.replace_by_pure_dict(old_parameters, parameters)
    nnx.replace_by_pure_dict(old_statistics, statistics)
    return nnx.merge(structure, old_parameters, old_statistics)


def restore_model(folder: Path, model: nnx.Module, sharding: Sharding) -> nnx.Module:
    """Returns an (abstract) model with the best parameters and statistics of a stage's folder.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    _, parameters, statistics = to_pure_dicts(model)
    with Checkpoints(folder / "checkpoints", training=False) as checkpoints:
        step = checkpoints.best()
        if step is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint; run its stage again")
        targets = {"parameters": parameters, "statistics": statistics}
        found = checkpoints.restore(step, abstract(targets, sharding))
    return merge_state(model, found["parameters"], found["statistics"])


def restore(
    folder: Path, construct: Callable[[], nnx.Module], sharding: Sharding | None = None
) -> Any:
    """Returns the best checkpoint of a stage's folder in the network that `construct` makes.

    Nothing is initialised: only shapes are worked out before the weights are read.
    """
    where = sharding or replicated(local_mesh())
    return restore_model(folder, nnx.eval_shape(construct), where)
