"""The film: an affine map from chest to pixels, and shapes drawn through it as 0-1 maps."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

from datasets.phantom.curves import Points

Plane = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Canvas:
    """A film of some size, and where the chest lies on it."""

    height: int
    width: int
    matrix: Float[np.ndarray, "2 2"]
    offset: Float[np.ndarray, "2"]

    @property
    def unit(self) -> float:
        """The length in pixels of one chest unit."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def pixels(self, points: Points) -> Points:
        """Returns points of the chest as pixel coordinates."""
        return points @ self.matrix.T + self.offset[None]

    def _draw(self, outlines: Iterable[Points], levels: Iterable[int], scale: float) -> Image.Image:
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        image = Image.new("L", size)
        pen = ImageDraw.Draw(image)
        for outline, level in zip(outlines, levels, strict=True):
            # Pixel centres sit at integers, on every scale.
            points = (self.pixels(outline) + 0.5) * scale - 0.5
            pen.polygon(points.ravel().tolist(), fill=level)
        return image

    def fill(
        self, outlines: list[Points], blur: float = 0.0, levels: list[int] | None = None
    ) -> Plane:
        """Returns filled outlines, later ones over earlier ones, with edges as wide as `blur`.

        Args:
            outlines: closed curves in chest coordinates.
            blur: the standard deviation of the edge, in chest units.
            levels: the brightness of each outline, up to 255, which is 1.
        """
        sigma = blur * self.unit
        scale = 2.0 if sigma < 0.6 else 1.0 if sigma < 3 else 0.5 if sigma < 6 else 0.25
        image = self._draw(outlines, levels or [255] * len(outlines), scale)
        if sigma >= 0.6:
            image = image.filter(ImageFilter.GaussianBlur(sigma * scale))
        if scale == 2:
            image = image.reduce(2)
        elif scale < 1:
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(image, np.float32) * np.float32(1 / 255)

    def texture(self, rng: np.random.Generator, wavelength: float) -> Plane:
        """Returns smooth noise of unit variance whose grains are some chest units wide."""
        step = max(1.0, wavelength * self.unit / 2)
        size = (int(self.height / step) + 3, int(self.width / step) + 3)
        grains = Image.fromarray(rng.standard_normal(size, np.float32))
        box = (1.0, 1.0, 1 + self.width / step, 1 + self.height / step)
        smooth = grains.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(smooth)

    def rows(self) -> Float[np.ndarray, "h w"]:
        """Returns the chest's y coordinate at every pixel."""
        inverse = np.linalg.inv(self.matrix)
        y, x = np.arange(self.height, dtype=np.float32), np.arange(self.width, dtype=np.float32)
        down = (y[:, None] - self.offset[1]) * inverse[1, 1]
        return (down + (x[None] - self.offset[0]) * inverse[1, 0]).astype(np.float32)


def sample_canvas(rng: np.random.Generator, short_side: int) -> Canvas:
    """Returns a film of random aspect with the chest turned, scaled and shifted a little."""
    long_side = round(short_side * rng.choice([1.0, rng.uniform(1.05, 1.25)], p=[0.15, 0.85]))
    height, width = (short_side, long_side) if rng.random() < 0.7 else (long_side, short_side)
    angle = np.clip(rng.normal() * 2.0, -5, 5) * np.pi / 180
    scale = short_side / 2 * rng.uniform(0.92, 1.18)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = short_side / 2 * (rng.normal(size=2) * [0.06, 0.06] + [0, 0.08])
    return Canvas(
        height, width, matrix, centre + np.clip(shift, -0.07 * short_side, 0.09 * short_side)
    )
