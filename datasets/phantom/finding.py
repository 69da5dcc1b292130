"""What a finding is: regions that readers outline, and how they look on the film."""

from dataclasses import dataclass

from datasets.phantom.curves import Points


@dataclass(frozen=True)
class Finding:
    """One finding: the region a reader outlines and how it looks."""

    observation: str
    regions: tuple[Points, ...] = ()
    density: float = 0.0
    """What the region adds to the film's density."""
    softness: float = 0.02
    """How wide the region's edge is."""
    grain: float = 0.0
    """How uneven the region is, relative to its density."""
    strokes: tuple[tuple[Points, float], ...] = ()
    """Fine outlines, and what each adds to the density."""
    bloodless: bool = False
    """Whether no vessel runs through the region."""
