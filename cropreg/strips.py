"""Strips: what lies along the four edges of a box, at the full resolution of the small picture.

The regressor sees a whole picture in a small square, where an edge can be told to about one pixel of that square.  A second look, along
each predicted edge, sees ten times as much.  Strips are turned so that the inside of the box is always on the right.

A strip does not show how large the box is, and who trims a share of what he keeps trims more of a large print than of a small one.
So beside each strip stands its extent.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

REACH = 0.08  # share of the picture's side to either side of an edge: the first look is off by more for one edge in a hundred
ACROSS_PX, ALONG_PX = 64, 96
OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])  # in which direction an edge (left, top, right, bottom) leaves the box
EXTENTS = 3
_OUTSIDE = (128, 128, 128)  # beyond the picture
_LEAST = 0.01  # sides of boxes below this share are taken for this long


def cut_strips(pixels: NDArray[np.uint8], box_norm: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The strips along a box's edges.

    Args:
        pixels: (H, W, 3) uint8.
        box_norm: (4,) x1, y1, x2, y2 in shares of the picture.

    Returns:
        (4, ALONG_PX, ACROSS_PX, 3) uint8: left, top, right, bottom edge, each in the middle of its strip, outside to the left.
    """
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = np.asarray(box_norm, np.float64)
    upright = [
        _sampled(pixels, (x - REACH) * width, y1 * height, (x + REACH) * width, y2 * height, ACROSS_PX, ALONG_PX) for x in (x1, x2)
    ]
    lying = [
        _sampled(pixels, x1 * width, (y - REACH) * height, x2 * width, (y + REACH) * height, ALONG_PX, ACROSS_PX) for y in (y1, y2)
    ]
    left, right = upright
    top, bottom = (strip.transpose(1, 0, 2) for strip in lying)
    return np.stack([left, top, right[:, ::-1], bottom[:, ::-1]])


def extents_of(box_norm: NDArray[np.float64], size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """What strips do not show, (4, EXTENTS) for the edges of a box (4,) of a picture of ``size_wh``.

    Three natural logarithms of shares of the picture's long side: how long the edge is, how far it is to the opposite edge, and how far
    the strip reaches.
    """
    sides = np.array(size_wh, np.float64) / max(size_wh)
    x1, y1, x2, y2 = np.asarray(box_norm, np.float64)
    width, height = np.maximum([x2 - x1, y2 - y1], _LEAST) * sides
    across, along = [width, height, width, height], [height, width, height, width]
    return np.log(np.stack([along, across, REACH * np.tile(sides, 2)], axis=1)).astype(np.float32)


def jittered(box_norm: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A box (4,) whose edges are off as a first look's are: mostly by a few hundredths, sometimes by as much as a strip shows."""
    near, far = rng.normal(0, REACH / 4, 4), rng.uniform(-REACH, REACH, 4)
    off = np.clip(np.where(rng.random(4) < 0.7, near, far), -0.97 * REACH, 0.97 * REACH)
    return np.asarray(box_norm, np.float64) + off


def widened(box_norm: NDArray[np.float64], true_norm: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A jittered box (4,), mostly with two opposite edges further out, as an untrimmed box has; its strips still show the true edges."""
    axis, out = rng.integers(3), rng.uniform(0, REACH)
    wide = box_norm + out * OUTWARD * (np.arange(4) % 2 == axis)
    return np.asarray(np.clip(wide, true_norm - 0.97 * REACH, true_norm + 0.97 * REACH), np.float64)


def offsets_between(box_norm: NDArray[np.float64], true_norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far (..., 4) the true edges lie inside those of ``box_norm``, in shares of ``REACH``: what a refiner learns to say."""
    return (np.asarray(box_norm) - np.asarray(true_norm)) * OUTWARD / REACH


def moved(box_norm: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The boxes (..., 4) with each edge moved inward by its offset: undoes :func:`offsets_between`."""
    return np.asarray(box_norm) - np.asarray(offsets) * OUTWARD * REACH


def _sampled(pixels: NDArray[np.uint8], x1: float, y1: float, x2: float, y2: float, columns: int, rows: int) -> NDArray[np.uint8]:
    """A rectangle in pixels of the picture, which may reach beyond it, as (rows, columns, 3); averaged where it shrinks."""
    step_x, step_y = max(x2 - x1, 1e-3) / columns, max(y2 - y1, 1e-3) / rows
    cells = max(1, int(step_x)), max(1, int(step_y))
    left, top = max(0, int(x1) - cells[0] - 2), max(0, int(y1) - cells[1] - 2)  # only what the strip shows is averaged
    source = pixels[top : max(0, int(y2) + cells[1] + 3), left : max(0, int(x2) + cells[0] + 3)]
    if source.size == 0:  # it lies beside the picture
        return np.full((rows, columns, 3), _OUTSIDE, np.uint8)
    if max(cells) > 1:
        source = cv2.blur(source, cells)
    matrix = np.array([[step_x, 0, x1 - left + step_x / 2 - 0.5], [0, step_y, y1 - top + step_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    strip = cv2.warpAffine(source, matrix, (columns, rows), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=_OUTSIDE)
    return np.asarray(strip, np.uint8)
