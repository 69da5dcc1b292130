"""Curves as arrays of [x, y] points, and the canvas that rasterises them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

Points = Float[np.ndarray, "n 2"]


def smooth(points: Sequence[Sequence[float]] | Points, *, closed: bool = False) -> Points:
    """Interpolate points by a Catmull-Rom spline, six samples per segment."""
    knots = np.asarray(points, float)
    ends = (knots[-1:], knots[:2]) if closed else (knots[:1], knots[-1:])
    a, b, c, d = (np.concatenate([ends[0], knots, ends[1]])[k:][:, None] for k in range(4))
    count = len(knots) if closed else len(knots) - 1
    t = np.arange(6)[None, :, None] / 6
    a, b, c, d = a[:count], b[:count], c[:count], d[:count]
    curve = b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))) / 2
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, knots[-1:]])


def ribbon(line: Points, widths: float | Float[np.ndarray, " n"]) -> Points:
    """Outline a line of constant or pointwise width."""
    return ribbons(line[None], widths)[0]


def ribbons(
    lines: Float[np.ndarray, "l n 2"], widths: float | Float[np.ndarray, "#l n"]
) -> Float[np.ndarray, "l m 2"]:
    """Outline several lines with the same number of points."""
    along = np.empty_like(lines)
    along[:, 1:-1] = lines[:, 2:] - lines[:, :-2]
    along[:, 0], along[:, -1] = lines[:, 1] - lines[:, 0], lines[:, -1] - lines[:, -2]
    lengths = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-9)
    half = (np.broadcast_to(widths, lengths.shape) / lengths / 2)[..., None]
    across = np.stack([-along[..., 1], along[..., 0]], -1) * half
    return np.concatenate([lines + across, (lines - across)[:, ::-1]], 1)


def blob(
    rng: np.random.Generator, centre: Sequence[float], radii: Sequence[float], roughness: float
) -> Points:
    """Sample an irregular closed outline; `roughness` 0 gives an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = np.arange(2, 7)
    amplitudes = rng.normal(size=5) * roughness / waves
    phases = rng.uniform(0, 2 * np.pi, 5)
    swell = 1 + (amplitudes * np.sin(waves * angles[:, None] + phases)).sum(1)
    swell = np.clip(swell, 0.6, 1.4)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.asarray(centre)[None] + circle * swell[:, None] * np.asarray(radii)[None]


def clip(outline: Points, width: int, height: int) -> Points:
    """Clip an outline to pixel centres [0, w - 1] x [0, h - 1] by the Sutherland-Hodgman algorithm."""
    for axis, sign, bound in ((0, 1, 0), (0, -1, 1 - width), (1, 1, 0), (1, -1, 1 - height)):
        inside = sign * outline[:, axis] - bound
        if (inside >= 0).all():
            continue
        clipped = []
        for k, (point, depth) in enumerate(zip(outline, inside, strict=True)):
            if (depth >= 0) != (inside[k - 1] >= 0):
                t = depth / (depth - inside[k - 1])
                clipped.append(point + t * (outline[k - 1] - point))
            if depth >= 0:
                clipped.append(point)
        outline = np.array(clipped).reshape(-1, 2)
    return outline


Plane = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Canvas:
    """An image size and the affine map from chest coordinates to pixels."""

    height: int
    width: int
    matrix: Float[np.ndarray, "2 2"]
    offset: Float[np.ndarray, "2"]

    @property
    def unit(self) -> float:
        """One chest unit in pixels."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def pixels(self, points: Points) -> Points:
        """Map chest coordinates to pixel coordinates."""
        return points @ self.matrix.T + self.offset[None]

    def _draw(self, outlines: Iterable[Points], levels: Iterable[int], scale: float) -> Image.Image:
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        image = Image.new("L", size)
        pen = ImageDraw.Draw(image)
        for outline, level in zip(outlines, levels, strict=True):
            # Pixel centres are integers at every scale.
            points = (self.pixels(outline) + 0.5) * scale - 0.5
            pen.polygon(points.ravel().tolist(), fill=level)
        return image

    def fill(
        self, outlines: list[Points], blur: float = 0.0, levels: list[int] | None = None
    ) -> Plane:
        """Fill outlines, later ones over earlier ones, with edges blurred by a Gaussian.

        Args:
            outlines: closed curves in chest coordinates.
            blur: the Gaussian's standard deviation in chest units.
            levels: the brightness of each outline; 255 is 1.0.
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
        """Sample smooth noise of about unit variance and the given wavelength in chest units."""
        step = max(1.0, wavelength * self.unit / 2)
        size = (int(self.height / step) + 3, int(self.width / step) + 3)
        grains = Image.fromarray(rng.standard_normal(size, np.float32))
        box = (1.0, 1.0, 1 + self.width / step, 1 + self.height / step)
        noise = grains.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(noise)

    def rows(self) -> Float[np.ndarray, "h w"]:
        """Compute the chest's y coordinate at every pixel."""
        inverse = np.linalg.inv(self.matrix)
        y, x = np.arange(self.height, dtype=np.float32), np.arange(self.width, dtype=np.float32)
        down = (y[:, None] - self.offset[1]) * inverse[1, 1]
        return (down + (x[None] - self.offset[0]) * inverse[1, 0]).astype(np.float32)


def sample_canvas(rng: np.random.Generator, short_side: int) -> Canvas:
    """Sample an aspect ratio, and a small rotation, scale and shift of the chest."""
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
