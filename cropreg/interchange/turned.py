"""Rectangles turned about their own centre: where their corners lie, and which rectangle two corners mean."""

from __future__ import annotations

import math

from cropreg.boxes import Box

_MIRRORED = (2, 4, 5, 7)  # EXIF orientations that exchange left and right


def turn(x: float, y: float, angle_deg: float) -> tuple[float, float]:
    """A vector turned clockwise on the screen (y points down)."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return x * cos - y * sin, x * sin + y * cos


def corners(box: Box, angle_deg: float) -> list[tuple[float, float]]:
    """The four corners of a box turned about its centre: what was top left, top right, bottom right, bottom left; px."""
    (w, h), (x, y) = box.size_wh, box.center_xy
    offsets = (turn(sx * w / 2, sy * h / 2, angle_deg) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return [(x + dx, y + dy) for dx, dy in offsets]


def from_corners(top_left: tuple[float, float], bottom_right: tuple[float, float], angle_deg: float) -> Box:
    """The box that has these two opposite corners once it is turned: the inverse of :func:`corners`.

    Raises:
        ValueError: there is none: its width or height would not be positive.
    """
    (x1, y1), (x2, y2) = top_left, bottom_right
    w, h = turn(x2 - x1, y2 - y1, -angle_deg)
    return around(((x1 + x2) / 2, (y1 + y2) / 2), (w, h))


def around(center_xy: tuple[float, float], size_wh: tuple[float, float]) -> Box:
    """The box of a size about a centre."""
    (x, y), (w, h) = center_xy, size_wh
    return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def mirrored_angle(angle_deg: float, orientation: int) -> float:
    """The same turn seen in the frame as stored (or back): a mirrored picture turns the other way round."""
    return -angle_deg if orientation in _MIRRORED else angle_deg
