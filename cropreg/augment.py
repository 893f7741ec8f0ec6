"""Augmentation that keeps the box: the same crop in another frame, without ever cutting into it, or as a worse camera would have taken it.

Windows are pure arithmetic on shares of the picture; the dataset applies them to pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def reframed_window(box_norm: NDArray[np.float64], strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws a window that holds the whole box: from each margin at most the share ``strength`` is cut away.

    Half of the windows are the whole picture, so that the model also sees the frames it will meet.

    Args:
        box_norm: (4,) x1, y1, x2, y2 in shares of the picture.
        strength: in [0, 1]; at 1 the window may shrink to the box itself.
        rng: the only source of chance.

    Returns:
        (4,) x1, y1, x2, y2 of the window in shares of the picture.
    """
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    if strength == 0 or rng.random() < 0.5:
        return whole
    return whole + (np.asarray(box_norm, np.float64) - whole) * (strength * rng.random(4))


def into_window(boxes_norm: NDArray[np.float64], window_norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (..., 4) in shares of the picture, seen in shares of a window (..., 4) of it."""
    origin, size = _origin_and_size(window_norm)
    return (np.asarray(boxes_norm, np.float64) - origin) / size


def out_of_window(boxes_norm: NDArray[np.float64], window_norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (..., 4) in shares of a window (..., 4), seen in shares of the picture: the inverse of :func:`into_window`."""
    origin, size = _origin_and_size(window_norm)
    return np.asarray(boxes_norm, np.float64) * size + origin


def grainy(pixels: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 with grain, half of its variance the same in all colours.

    It is Gaussian; its standard deviation is drawn evenly from [0, 25.5 ``strength``].  Half of the pictures come back as they are, so that
    the model also sees those that it will meet.
    """
    if strength == 0 or rng.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    deviation = 25.5 * strength * rng.random() / np.sqrt(2)
    grain = rng.standard_normal((height, width, 1), np.float32) + rng.standard_normal((height, width, 3), np.float32)
    return np.clip(pixels + np.float32(deviation) * grain + 0.5, 0, 255).astype(np.uint8)


def _origin_and_size(window_norm: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    window = np.asarray(window_norm, np.float64)
    origin, size = window[..., :2], window[..., 2:] - window[..., :2]
    return np.concatenate([origin, origin], -1), np.concatenate([size, size], -1)
