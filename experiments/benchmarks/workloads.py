"""What a benchmark runs and how large: the rows, the sizes for a device, and a row ready to be timed."""

import time
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from chexseg_jax.models.spec import DENSENET121, RESNET18, RESNET50, BackboneSpec
from experiments.benchmarks.roofline import Cost, cost_of

Row = Literal[
    "classify", "localize", "seed", "relate", "walk", "segment", "predict", "loader", "whole"
]
ROWS: Final[tuple[Row, ...]] = get_args(Row)

Walk = tuple[int, int, int]
"""The side of the grid, the radius, the steps."""


@dataclass(frozen=True)
class Scale:
    """How large the rows are on a kind of device."""

    batches: dict[Row, int]
    image_size: int = 320
    irnet_size: int = 512  # of the images that IRNet trains on
    radius: int = 10  # of IRNet's pairs
    walks: tuple[Walk, ...] = ((80, 3, 8), (80, 5, 256), (128, 5, 256))
    classifier: BackboneSpec = DENSENET121
    encoder: BackboneSpec = RESNET18  # the segmenter's, of the paper's code
    irnet: BackboneSpec = RESNET50  # its backbone, of the paper's code
    decoder: int = 256  # channels of the segmenter's decoder
    loaded: int = 4096  # images that the loader reads at most
    whole: tuple[int, int] = (512, 2560)  # images of the two runs from end to end
    films: int = 64  # different images that are drawn for both

    def of_batch(self, batch: int | None) -> "Scale":
        """Returns the same sizes with another number of images at once in every row."""
        return self if batch is None else replace(self, batches=dict.fromkeys(ROWS, batch))


ACCELERATOR: Final = Scale(
    {
        "classify": 128,
        "localize": 128,
        "seed": 16,
        "relate": 16,
        "walk": 64,
        "segment": 64,
        "predict": 64,
        "loader": 128,
        "whole": 128,
    }
)
CPU: Final = Scale(
    {
        "classify": 8,
        "localize": 8,
        "seed": 2,
        "relate": 2,
        "walk": 4,
        "segment": 8,
        "predict": 8,
        "loader": 8,
        "whole": 4,
    },
    irnet_size=256,
    loaded=1024,
    whole=(4, 12),
)
"""Smaller batches, and smaller images for IRNet."""

TINY: Final = BackboneSpec(blocks=(1, 1, 1, 1), growth=8, width=8)
QUICK: Final = Scale(
    dict.fromkeys(ROWS, 8),
    image_size=64,
    irnet_size=64,
    radius=3,
    walks=((16, 3, 8),),
    classifier=TINY,
    encoder=TINY,
    irnet=TINY,
    decoder=8,
    loaded=64,
    whole=(8, 16),
    films=8,
)
"""Seconds for everything: that the command works, not how fast anything is."""


@dataclass(frozen=True)
class Case:
    """One row's measures: what a counterpart needs to know to do the same."""

    row: Row
    name: str
    images: int  # at once
    size: int  # side of the images or of the grid
    radius: int = 0
    steps: int = 0
    peer: bool = True  # whether there is anything to compare with


@dataclass(frozen=True)
class Workload:
    """A function as a stage calls it, and its arguments on the devices."""

    case: Case
    function: Any  # made by `jax.jit`
    arguments: tuple[Any, ...]
    learns: bool = False  # whether the first argument is given away, and is the first result
    dtype: DTypeLike = jnp.float32  # in which most is multiplied
    flops: float | None = None  # of one call, where loops hide them from XLA's count
    moved: float | None = None  # bytes, likewise


class Compiled:
    """A workload, lowered and compiled: a `Runner` that knows its cost."""

    def __init__(self, workload: Workload) -> None:
        """Compiles, and takes the time of it."""
        began = time.perf_counter()
        self._run = workload.function.lower(*workload.arguments).compile()
        self.compile_seconds = time.perf_counter() - began
        self._arguments, self._learns = workload.arguments, workload.learns
        self.images = workload.case.images
        counted, devices = cost_of(self._run), jax.device_count()
        self._one_by_one = jax.default_backend() == "cpu" and devices > 1
        self.cost = Cost(
            workload.flops / devices if workload.flops else counted.flops,
            workload.moved / devices if workload.moved else counted.moved,
            counted.memory,
        )

    def start(self) -> Any:
        """Starts a call; a training goes on from the state that the last one left."""
        result = self._run(*self._arguments)
        if self._learns:
            self._arguments = (result[0], *self._arguments[1:])
        # On CPUs calls that wait for one another's devices can take all of XLA's threads, and hang.
        return jax.block_until_ready(result) if self._one_by_one else result

    def wait(self, started: Any) -> None:
        """Waits for a call."""
        jax.block_until_ready(started)
