"""Unrest: do tiles of a place want to move, each by itself?  What has moved in the scene, or a stretch that one scale does not tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.follow import Found
from cropreg.matching.local import Displacements, common_stretch
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.verify import quantile


@dataclass(frozen=True)
class Unrest:
    """Whether all tiles lie still, how many could tell, the median of their displacements over their errors, and suspects.

    ``spread`` is the deviation of the places of those that could tell, in shares of the crop, in the direction in which it is less (of
    resized crops, which alone are asked).
    ``apart`` is that median of what is left of the displacements without the one they have in common.
    ``drift_px`` is what they ask for in common, in original pixels: what robust weights have overruled; ``stretch_px`` the
    stretch of a resized crop that one scale does not tell, see :func:`common_stretch`.  ``suspects`` are the centres
    (x, y), in crop pixels, of tiles that most clearly do not lie still.
    """

    calm: bool
    tiles: int
    spread: float
    median: float
    apart: float
    drift_px: float
    stretch_px: NDArray[np.float64] | None
    suspects: list[tuple[float, float]]


def look_for_unrest(found: Found, kept: bool, s: MatcherSettings) -> Unrest:
    """Looks for tiles that want to move by more than their own error explains.

    Aliasing moves tiles of a true crop at random; what has moved in the scene moves larger tiles, and the smaller ones in them, alike.
    """
    small, large = found.displacements(s)
    corner = small.sigmas_px < s.motion_sigma * found.pair.step
    if corner.sum() < s.least_motion_tiles:
        return Unrest(False, 0, 0.0, 0.0, 0.0, np.inf, None, [])
    spread = 0.0 if kept else float((np.argwhere(corner).std(0) / corner.shape).min())
    stretch_px = None
    if not kept and corner.sum() >= s.least_stretch_tiles:  # an export's rounded sides are not told by one scale
        w, h = found.pair.grid.size_wh
        stretch_px = common_stretch(small, corner, w / h, 0.5 / places.scale(found.place))
        small, large = small.without_stretch(stretch_px), large.without_stretch(stretch_px)
    shifts, sigmas = small.shifts_px[corner], np.maximum(small.sigmas_px[corner], 1e-6)
    relative = np.hypot(*shifts.T) / sigmas
    median = quantile(relative, 0.5)
    apart = quantile(np.hypot(*(shifts - np.median(shifts, 0)).T) / sigmas, 0.5) if median > s.moving_median else median
    calm = median < s.calm_median and quantile(relative, 0.9) < s.calm_most
    size = np.hypot(large.shifts_px[..., 0], large.shifts_px[..., 1])
    sure = (large.sigmas_px < s.motion_sigma * found.pair.step) & (size >= s.suspect_px)
    strength = np.where(sure, size / np.maximum(large.sigmas_px, 1e-6), 0.0)
    suspects = _suspects(found, small, large, strength, s) if strength.max() >= s.suspect_ratio else []  # else not worth full size
    weights = 1 / sigmas**2
    drift_px = float(np.abs(weights @ shifts).max() / weights.sum())
    return Unrest(calm and not suspects, int(corner.sum()), spread, median, apart, drift_px, stretch_px, suspects)


def _suspects(
    found: Found, small: Displacements, large: Displacements, strength: NDArray[np.float64], s: MatcherSettings
) -> list[tuple[float, float]]:
    """The centres (x, y), in crop pixels, of the strongest of the large tiles of which the small one in the middle wants to move alike."""
    grid, (rows, columns), suspects = found.pair.grid, strength.shape, []
    for k in np.argsort(-strength, axis=None, kind="stable")[: s.most_suspects]:
        row, column = divmod(int(k), columns)
        if strength[row, column] < s.suspect_least:
            break
        part = small.shifts_px[
            (2 * row + 1) * small.shifts_px.shape[0] // (2 * rows), (2 * column + 1) * small.shifts_px.shape[1] // (2 * columns)
        ]
        shift = large.shifts_px[row, column]
        along = float(part @ shift) / float(np.hypot(*shift))
        if along >= s.suspect_px / 2 and along >= 0.7 * float(np.hypot(*part)):
            x, y = (column + 0.5) * (grid.size_wh[0] // columns), (row + 0.5) * (grid.size_wh[1] // rows)
            suspects.append((grid.shift_xy[0] + x * grid.step_xy[0], grid.shift_xy[1] + y * grid.step_xy[1]))
    return suspects
