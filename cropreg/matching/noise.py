"""Noise: two exposures or scans of one thing show the same scene, but never the same noise.

A crop that was cut from the original shares the original's noise, even after a turn and JPEG at quality 75 (correlation 0.51 and more in
60 crops); a neighbouring frame or another scan does not (below 0.40, unless the picture is textured everywhere).  Lower JPEG qualities
take the noise away: such files are not asked.  It is measured where the picture itself is quiet.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.follow import around
from cropreg.matching.place import Affine, compose, shifted
from cropreg.matching.plane import Plane, band_pass, between, warped

WINDOW_PX = 96
TILE_PX = 21  # what is quiet is chosen tile by tile: few windows are quiet all over
QUIET = 0.1  # share of tiles that are compared: in the others the picture's own detail drowns the noise
MIN_TILES = 6
MARGIN_PX = 6  # of a window, where its own blur looks outside
DARK, BRIGHT = 12, 243  # clipped tones have lost their noise


@dataclass(frozen=True)
class SharedNoise:
    """Correlation of the fine structure of quiet tiles, and its deviation in the original and in the crop, in grey levels."""

    correlation: float
    original_std: float
    crop_std: float


def shared_noise(original: Plane, crop: Plane, search_plane: Plane, place: Affine) -> SharedNoise | None:
    """Compares fine structure (0.6 to 2.5 px) in the quietest tenth of 16 windows' tiles; planes full-size, ``search_plane`` the crop's.

    None when no window is free of clipping.  Cost: 3 ms.
    """
    w, h = crop.size_wh
    if min(w, h) < WINDOW_PX:
        return None
    tiles = []
    for left, top in _quiet_windows(search_plane, (w, h)):
        part_c = crop.window(left, top, left + WINDOW_PX, top + WINDOW_PX)
        part_o = around(original, compose(place, shifted(left, top)), (WINDOW_PX, WINDOW_PX), 8)
        moved = _tiled(_fine(warped(part_o, between(part_o, part_c, place), (WINDOW_PX, WINDOW_PX))))
        target = _tiled(_fine(part_c.pixels.astype(np.float32)))
        tiles.append(np.stack([moved.var(1), target.var(1), (moved * target).mean(1) - moved.mean(1) * target.mean(1)], 1))
    if not tiles:
        return None
    each = np.concatenate(tiles).astype(np.float64)  # (tiles, 3): the two variances and the covariance
    quiet = np.argsort(each[:, 0] + each[:, 1], kind="stable")[: max(MIN_TILES, int(len(each) * QUIET))]
    own, other, common = each[quiet].mean(0).tolist()
    return SharedNoise(common / (own * other + 1e-12) ** 0.5, own**0.5, other**0.5)


def _tiled(fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, n) as (tiles, pixels of a tile)."""
    n = fine.shape[0] // TILE_PX
    whole = fine[: n * TILE_PX, : n * TILE_PX].reshape(n, TILE_PX, n, TILE_PX)
    return whole.transpose(0, 2, 1, 3).reshape(n * n, TILE_PX * TILE_PX)


def _fine(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(pixels, (0, 0), 0.6)
    fine = smooth - cv2.GaussianBlur(smooth, (0, 0), 2.5)
    return fine[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def _quiet_windows(plane: Plane, full_wh: tuple[int, int], per_side: int = 4) -> list[tuple[int, int]]:
    """The left and top of the quietest unclipped window in each of ``per_side``**2 parts of the crop."""
    pixels = plane.pixels.astype(np.float32)
    band = band_pass(cv2.GaussianBlur(pixels, (0, 0), 0.9), 15)
    side = max(1, int(WINDOW_PX / plane.step))
    energy, tone = cv2.blur(band * band, (side, side)), cv2.blur(pixels, (side, side))
    energy[(tone < DARK) | (tone > BRIGHT)] = np.inf
    (pw, ph), (w, h) = plane.size_wh, full_wh
    result = []
    for j in range(per_side):
        for i in range(per_side):
            x1, y1 = i * pw // per_side, j * ph // per_side
            part = energy[y1 : (j + 1) * ph // per_side, x1 : (i + 1) * pw // per_side]
            if not part.size or not np.isfinite(part.min()):
                continue
            y, x = np.unravel_index(int(part.argmin()), part.shape)
            cx = plane.shift_xy[0] + (x1 + int(x) + 0.5) * plane.step_xy[0]
            cy = plane.shift_xy[1] + (y1 + int(y) + 0.5) * plane.step_xy[1]
            half = WINDOW_PX / 2
            result.append((int(np.clip(cx - half, 0, w - WINDOW_PX)), int(np.clip(cy - half, 0, h - WINDOW_PX))))
    return result
