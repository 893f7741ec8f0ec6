"""Boxes and margins: pure arithmetic on rectangles, in pixels (``_px``) or in shares of the picture (``_norm``).

A box is ``x1, y1, x2, y2``, half-open: its edges are pixel *corners*, so a width is ``x2 - x1`` and, at whole numbers, the pixels are
``image[y1:y2, x1:x2]``.  Margins are the shares cut away per side: left, top, right, bottom, in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the upright original, half-open.

    >>> Box(10, 20, 110, 70).size_wh
    (100, 50)
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not (self.x2 > self.x1 and self.y2 > self.y1):
            raise ValueError(f"a box needs x2 > x1 and y2 > y1, got {self.x1, self.y1, self.x2, self.y2}")

    @property
    def size_wh(self) -> tuple[float, float]:
        """(width, height) in pixels."""
        return self.x2 - self.x1, self.y2 - self.y1

    @property
    def center_xy(self) -> tuple[float, float]:
        """The centre in pixel-corner coordinates."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def is_whole(self) -> bool:
        """Whether all four edges are whole numbers of pixels."""
        return all(float(v).is_integer() for v in self)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.x1, self.y1, self.x2, self.y2))

    def rounded(self, size_wh: tuple[int, int]) -> Box:
        """The nearest box in whole pixels that lies inside a picture of ``size_wh`` and holds at least one pixel.

        >>> Box(-3.2, 0.4, 9.6, 12.0).rounded((10, 10))
        Box(x1=0, y1=0, x2=10, y2=10)
        """
        w, h = size_wh
        x1, y1 = min(max(round(self.x1), 0), w - 1), min(max(round(self.y1), 0), h - 1)
        return Box(x1, y1, max(min(round(self.x2), w), x1 + 1), max(min(round(self.y2), h), y1 + 1))


def to_stored(box: Box, size_wh: tuple[float, float], orientation: int) -> Box:
    """A box of an upright picture of ``size_wh``, in the frame as its file stores it, before the turn by the EXIF ``orientation``.

    >>> to_stored(Box(10, 20, 30, 50), (100, 80), 6)
    Box(x1=20, y1=70, x2=50, y2=90)
    """
    (x1, y1, x2, y2), (w, h) = box, size_wh
    return Box(
        *{
            1: (x1, y1, x2, y2),
            2: (w - x2, y1, w - x1, y2),
            3: (w - x2, h - y2, w - x1, h - y1),
            4: (x1, h - y2, x2, h - y1),
            5: (y1, x1, y2, x2),
            6: (y1, w - x2, y2, w - x1),
            7: (h - y2, w - x2, h - y1, w - x1),
            8: (h - y2, x1, h - y1, x2),
        }[orientation]
    )


def from_stored(box: Box, stored_wh: tuple[float, float], orientation: int) -> Box:
    """A box of the frame as stored, ``stored_wh``, in the upright picture: the inverse of :func:`to_stored`."""
    return to_stored(box, stored_wh, {6: 8, 8: 6}.get(orientation, orientation))  # the other six undo themselves


def to_margins(boxes_norm: ArrayLike) -> NDArray[np.float64]:
    """Turns boxes (..., 4) in shares of the picture into margins left, top, right, bottom (..., 4).

    >>> to_margins([0.1, 0.2, 0.7, 0.9]).round(2).tolist()
    [0.1, 0.2, 0.3, 0.1]
    """
    b = np.asarray(boxes_norm, np.float64)
    return np.concatenate([b[..., :2], 1 - b[..., 2:]], axis=-1)


def from_margins(margins: ArrayLike) -> NDArray[np.float64]:
    """Turns margins (..., 4) into boxes in shares of the picture (..., 4): the inverse of :func:`to_margins`."""
    return to_margins(margins)  # x2 = 1 - right and right = 1 - x2 are the same operation


def normalise(boxes_px: ArrayLike, sizes_wh: ArrayLike) -> NDArray[np.float64]:
    """Divides boxes (..., 4) in pixels by their pictures' (..., 2) width and height."""
    return np.asarray(boxes_px, np.float64) / np.tile(np.asarray(sizes_wh, np.float64), 2)


def denormalise(boxes_norm: ArrayLike, sizes_wh: ArrayLike) -> NDArray[np.float64]:
    """Multiplies boxes (..., 4) in shares by their pictures' (..., 2) width and height."""
    return np.asarray(boxes_norm, np.float64) * np.tile(np.asarray(sizes_wh, np.float64), 2)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of boxes (..., 4), broadcast; 0 where both have no area.

    >>> iou([0, 0, 2, 2], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
    [1.0, 0.333, 0.0]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    wh = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = wh[..., 0] * wh[..., 1]
    union = area(a) + area(b) - inter
    return np.divide(inter, union, out=np.zeros(np.broadcast(inter, union).shape), where=union > 0)


def area(boxes: ArrayLike) -> NDArray[np.float64]:
    """Areas (...) of boxes (..., 4); 0 for a box turned inside out."""
    b = np.asarray(boxes, np.float64)
    return np.clip(b[..., 2] - b[..., 0], 0, None) * np.clip(b[..., 3] - b[..., 1], 0, None)


def in_order(boxes_norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (N, 4) within the picture, their edges in order and at least a thousandth apart."""
    low = np.clip(boxes_norm[:, :2], 0, 0.999)
    return np.concatenate([low, np.clip(np.maximum(boxes_norm[:, 2:], low + 0.001), None, 1)], axis=1)


def boundary_displacement(a_norm: ArrayLike, b_norm: ArrayLike) -> NDArray[np.float64]:
    """BDE (...): the mean of the four edge errors of boxes (..., 4), each already divided by width or height."""
    return np.abs(np.asarray(a_norm, np.float64) - np.asarray(b_norm, np.float64)).mean(axis=-1)
