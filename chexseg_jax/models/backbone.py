"""The interface of every backbone: stages, features, and a head that classifies them."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

Stages = tuple[
    Float[Array, "b h1 w1 c1"],
    Float[Array, "b h2 w2 c2"],
    Float[Array, "b h3 w3 c3"],
    Float[Array, "b h4 w4 c4"],
    Float[Array, "b h5 w5 c5"],
]
"""Five maps at strides 4 (the pooled stem), 4, 8, 16 and 32, or 16 where the last stage is dilated."""


@runtime_checkable
class Backbone(Protocol):
    """A classification network that exposes its stages."""

    channels: tuple[int, int, int, int, int]

    def stages(self, images: Float[Array, "b h w 3"], *, train: bool = False) -> Stages:
        """Return the maps of all five stages; `train` uses and updates batch statistics."""
        ...

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b fh fw c"]:
        """Return the last stage's map, the input of `classify`."""
        ...

    def classify(
        self, features: Float[Array, "b fh fw c"], content: Float[Array, "b fh fw"] | None = None
    ) -> Float[Array, "b n"]:
        """Return a logit for every output; `content` is the part of each cell that is image."""
        ...

    def cell_logits(self, features: Float[Array, "b fh fw c"]) -> Float[Array, "b fh fw n"]:
        """Return the head's logits of every cell by itself."""
        ...

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Return the logits of images."""
        ...


def is_dilated(output_stride: int) -> bool:
    """Return whether the last stage keeps the grid of the one before.

    Raises:
        ValueError: the stride is neither 16 nor 32.
    """
    if output_stride not in (16, 32):
        raise ValueError(f"output_stride must be 16 or 32, got {output_stride}")
    return output_stride == 16
