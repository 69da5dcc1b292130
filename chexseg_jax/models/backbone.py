"""What every backbone offers: stages, features, and a head that classifies them."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

Stages = tuple[
    Float[Array, "b h1 w1 c1"],
    Float[Array, "b h2 w2 c2"],
    Float[Array, "b h3 w3 c3"],
    Float[Array, "b h4 w4 c4"],
    Float[Array, "b h5 w5 c5"],
]
"""Five maps at strides 4 (the pooled stem), 4, 8, 16 and 32, or 16 where the last stage is wide."""


@runtime_checkable
class Backbone(Protocol):
    """A network for images that shows its stages."""

    channels: tuple[int, int, int, int, int]

    def stages(self, images: Float[Array, "b h w 3"], *, train: bool = False) -> Stages:
        """Returns the maps of all five stages; `train` uses and updates batch statistics."""
        ...

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b fh fw c"]:
        """Returns the last stage's map, which `classify` reads."""
        ...

    def classify(self, features: Float[Array, "b fh fw c"]) -> Float[Array, "b n"]:
        """Returns a logit for every output."""
        ...

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Returns the logits of images."""
        ...


def is_dilated(output_stride: int) -> bool:
    """Returns whether the last stage keeps the grid of the one before.

    Raises:
        ValueError: the stride is neither 16 nor 32.
    """
    if output_stride not in (16, 32):
        raise ValueError(f"output_stride must be 16 or 32, got {output_stride}")
    return output_stride == 16
