"""Checkpoints: the only module that saves and restores with Orbax.

Parameters, batch statistics and optimizer state are separate items, so that inference restores only what
it needs. Two steps are kept: the latest, to resume from, and the best, to use.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers as managers

from chexseg_jax.models.spec import NetworkSpec
from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.sharding import local_mesh, replicated

ITEMS = ("parameters", "statistics", "optimiser")


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


class Checkpoints:
    """The checkpoints of one training, in one folder."""

    def __init__(self, folder: Path, *, training: bool = True) -> None:
        """Open the folder; without `training` nothing is created or deleted."""
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
        """Return the latest step, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Return the step of the highest score, the latest of equal ones."""
        return self._manager.best_step()

    def best_score(self) -> dict[str, float]:
        """Wait for pending saves and return the best step and its score; delete partial other steps."""
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
        """Save one step with its score, in the background.

        Raises:
            NotWritten: the disk is full or read-only, perhaps for the step before.
        """
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with explain_write_errors(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics={"score": score})

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Restore items of a step onto their abstract trees, with those trees' shardings."""
        targets = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**targets)))


def abstract(tree: Any, sharding: Sharding) -> Any:
    """Return the shapes and dtypes of a tree, to be restored with one sharding."""

    def leaf(value: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def write_tree(folder: Path, tree: Any) -> None:
    """Write a tree of arrays as an Orbax checkpoint for inference."""
    with explain_write_errors(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)


def read_tree(folder: Path, tree: Any, sharding: Sharding) -> Any:
    """Read what `write_tree` wrote, onto an abstract tree with one sharding."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), abstract(tree, sharding))


def split_state(model: nnx.Module, trained: nnx.filterlib.Filter) -> tuple[nnx.GraphDef, Any, Any]:
    """Split a model into its graph, the variables of a filter, and the other variables."""
    graph, *states = nnx.split(model, trained, ...)
    return graph, states[0], states[1]


def to_pure_dicts(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Split a model into its graph, and its parameters and statistics as nested dictionaries."""
    graph, parameters, statistics = split_state(model, nnx.Param)
    return graph, nnx.to_pure_dict(parameters), nnx.to_pure_dict(statistics)


def merge_state(
    model: nnx.Module, parameters: dict[str, Any], statistics: dict[str, Any]
) -> nnx.Module:
    """Replace the variables of a model, which may be abstract, by those of `to_pure_dicts`."""
    graph, old_parameters, old_statistics = split_state(model, nnx.Param)
    nnx.replace_by_pure_dict(old_parameters, parameters)
    nnx.replace_by_pure_dict(old_statistics, statistics)
    return nnx.merge(graph, old_parameters, old_statistics)


def restore(folder: Path, spec: NetworkSpec | None = None, sharding: Sharding | None = None) -> Any:
    """Restore the best checkpoint of a training stage's folder; nothing is initialised.

    Args:
        folder: the stage's folder, whose manifest says which network it holds.
        spec: another network for the same weights, such as the same backbone at output stride 16;
            needed while the stage is unfinished and has no manifest.
        sharding: of every variable; by default on all devices of this process.

    Raises:
        FileNotFoundError: there is no manifest, or no checkpoint.
    """
    spec = spec or spec_of(folder)
    model = nnx.eval_shape(spec.build)
    _, parameters, statistics = to_pure_dicts(model)
    targets = {"parameters": parameters, "statistics": statistics}
    with Checkpoints(folder / "checkpoints", training=False) as checkpoints:
        step = checkpoints.best()
        if step is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint; run its stage again")
        where = sharding or replicated(local_mesh())
        items = checkpoints.restore(step, abstract(targets, where))
    return merge_state(model, items["parameters"], items["statistics"])


def spec_of(folder: Path) -> NetworkSpec:
    """Read from a finished training stage's manifest which network it trained."""
    return NetworkSpec.from_json(json.loads((folder / "manifest.json").read_text())["network"])
