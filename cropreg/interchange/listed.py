"""What a file that lists crops says of one of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """A crop that a list names, or a picture it names without one.

    Attributes:
        name: of the picture, as the list has it.
        key: what tells it from other crops of that picture in the list.
        edges: x1, y1, x2, y2 in pixels of the upright original; None: no crop.
        angle_deg: clockwise about the box's centre.
        size_wh: of the picture as the list knew it, upright.
    """

    name: str
    key: str
    edges: tuple[float, float, float, float] | None
    angle_deg: float = 0.0
    size_wh: tuple[int, int] | None = None
