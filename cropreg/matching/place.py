"""Places: where a crop lies in its original, as a 2x3 affine map, and the box and angle read from it.

All coordinates are pixel *corners*: the first pixel of a row spans 0 to 1.  A place maps crop pixels (x, y) to pixels of the upright
original: ``original = place[:, :2] @ crop + place[:, 2]``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box

Affine = NDArray[np.float64]  # (2, 3)


def shifted(x: float, y: float) -> Affine:
    """The place of a crop that was only cut out: its corner at (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def compose(outer: Affine, inner: Affine) -> Affine:
    """The map that applies ``inner`` first, then ``outer``."""
    (a, b, c), (d, e, f) = outer.tolist()  # written out: numpy's small products cost more than the registration of a small plane
    (g, h, i), (j, k, m) = inner.tolist()
    return np.array([[a * g + b * j, a * h + b * k, a * i + b * m + c], [d * g + e * j, d * h + e * k, d * i + e * m + f]])


def moved_within(place: Affine, x: float, y: float) -> Affine:
    """``compose(place, shifted(x, y))``, at a third of the cost."""
    (a, b, c), (d, e, f) = place.tolist()
    return np.array([[a, b, a * x + b * y + c], [d, e, d * x + e * y + f]])


def invert(place: Affine) -> Affine:
    """The map back."""
    (a, b, c), (d, e, f) = place.tolist()
    det = a * e - b * d
    return np.array([[e / det, -b / det, (b * f - c * e) / det], [-d / det, a / det, (c * d - a * f) / det]])


def apply(place: Affine, points_xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps points (n, 2)."""
    return points_xy @ place[:, :2].T + place[:, 2]


def scales(place: Affine) -> tuple[float, float]:
    """Crop pixels per original pixel, along the crop's x and y axis."""
    return 1 / math.hypot(place[0, 0], place[1, 0]), 1 / math.hypot(place[0, 1], place[1, 1])


def scale(place: Affine) -> float:
    """Crop pixels per original pixel, the geometric mean of both axes."""
    x, y = scales(place)
    return math.sqrt(x * y)


def growth(matrix: Affine) -> float:
    """The inverse of :func:`scale`, by the area: of any map between two pictures, pixels of the one per pixel of the other."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return math.sqrt(abs(a * d - b * c))


def angle_deg(place: Affine) -> float:
    """The turn of the crop's x axis in the original, degrees, clockwise on the screen (y points down)."""
    return math.degrees(math.atan2(place[1, 0], place[0, 0]))


def center(place: Affine, crop_wh: tuple[int, int]) -> NDArray[np.float64]:
    """Where the crop's centre lies in the original (2,)."""
    return place[:, :2] @ (np.asarray(crop_wh, np.float64) / 2) + place[:, 2]


def to_box(place: Affine, crop_wh: tuple[int, int]) -> Box:
    """The crop's rectangle in the original before it was turned about its own centre."""
    cx, cy = (float(v) for v in center(place, crop_wh))
    half_w, half_h = (n / s / 2 for n, s in zip(crop_wh, scales(place), strict=True))
    return Box(cx - half_w, cy - half_h, cx + half_w, cy + half_h)


def from_box(box: Box, crop_wh: tuple[int, int], angle_deg: float = 0.0) -> Affine:
    """The place of a crop of ``crop_wh`` pixels that shows ``box`` turned clockwise by ``angle_deg`` about its centre.

    >>> to_box(from_box(Box(10, 20, 110, 70), (200, 100), 3.0), (200, 100)).size_wh
    (100.0, 50.0)
    """
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    linear = np.array([[c, -s], [s, c]]) @ np.diag(np.asarray(box.size_wh) / np.asarray(crop_wh))
    return np.hstack([linear, (np.asarray(box.center_xy) - linear @ (np.asarray(crop_wh) / 2))[:, None]])


def without_shear(place: Affine, crop_center_xy: tuple[float, float], *, stretched: bool = False) -> Affine:
    """The nearest place without shear, about the crop's centre: one scale and an angle, or two scales where it is ``stretched``.

    Planes have slightly different steps in x and y, crops do not.
    """
    x, y = crop_center_xy
    (a, b, c), (d, e, f) = place.tolist()
    cos, sin = a + e, d - b
    cos, sin = cos / math.hypot(cos, sin), sin / math.hypot(cos, sin)
    length_x, length_y = (math.hypot(a, d), math.hypot(b, e)) if stretched else (math.sqrt(max(a * e - b * d, 1e-12)),) * 2
    a2, b2, d2, e2 = length_x * cos, -length_y * sin, length_x * sin, length_y * cos
    return np.array([[a2, b2, a * x + b * y + c - a2 * x - b2 * y], [d2, e2, d * x + e * y + f - d2 * x - e2 * y]])


def stretched(place: Affine, crop_wh: tuple[int, int], stretch_px: NDArray[np.float64]) -> Affine:
    """The place moved by a shift, and by so much more towards the crop's edges: (2, 2) original px, for x and for y."""
    w, h = crop_wh
    linear = place[:, :2] + np.diag([stretch_px[0, 1] / (w / 2), stretch_px[1, 1] / (h / 2)])
    middle = center(place, crop_wh) + stretch_px[:, 0]
    moved = np.hstack([linear, (middle - linear @ (np.asarray(crop_wh) / 2))[:, None]])
    return without_shear(moved, (w / 2, h / 2), stretched=True)


def distance_px(a: Affine, b: Affine, crop_wh: tuple[int, int]) -> float:
    """The largest distance in original pixels between the crop's corners as two places put them."""
    w, h = crop_wh
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], np.float64)
    return float(np.abs(apply(a, corners) - apply(b, corners)).max())


def outside_px(place: Affine, crop_wh: tuple[int, int], original_wh: tuple[int, int]) -> float:
    """By how many original pixels a crop's box reaches beyond the original at the most; 0 if it does not.

    A picture that was turned in its own canvas has no corners, but its box is the original's.
    """
    (w, h), box = original_wh, to_box(place, crop_wh)
    return max(0.0, -box.x1, -box.y1, box.x2 - w, box.y2 - h)
