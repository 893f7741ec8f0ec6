"""Grain: finds plain crops of skies and walls by what is left in them, the noise of sensor or film that both files share.

Smoothing and whole grey levels would take it away: planes are averaged without rounding here, and compared as they are.
"""

from __future__ import annotations

import cv2
import numpy as np

from cropreg.matching import place as places
from cropreg.matching.follow import Found, compare
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Pair, Plane, band_pass
from cropreg.matching.register import register
from cropreg.matching.search import correlation_map, peaks
from cropreg.matching.settings import MatcherSettings

BAND_PX = 9  # grain has no wider structure
STRIP_PX = 512  # rows averaged at a time, so that no large picture is float32 as a whole


def averaged(plane: Plane, factor: int) -> Plane:
    """Like :meth:`Plane.reduced`, in float32 and without rounding."""
    w, h = (n // factor for n in plane.size_wh)
    pixels = np.empty((h, w), np.float32)
    rows = max(1, STRIP_PX // factor)
    for y in range(0, h, rows):
        strip = plane.pixels[y * factor : min(y + rows, h) * factor, : w * factor].astype(np.float32)
        pixels[y : y + rows] = cv2.resize(strip, (w, len(strip) // factor), interpolation=cv2.INTER_AREA)
    return Plane(pixels, (plane.step_xy[0] * factor, plane.step_xy[1] * factor), plane.shift_xy)


def by_grain(original: Picture, crop: Picture, whole: Plane, part: Plane, s: MatcherSettings) -> Found | None:
    """The place of a plain crop where the grain of ``whole`` and ``part`` correlates best, compared at full size.

    ``whole`` and ``part`` are both pictures, averaged alike.  None where a second place correlates nearly as well: then it is no grain
    but the grid of JPEG's blocks, or a pattern.
    """
    step = round(whole.step)
    found = peaks(correlation_map(band_pass(whole.pixels, BAND_PX), band_pass(part.pixels, BAND_PX)), 2, apart_px=4)
    if not found or (len(found) > 1 and found[1][2] > s.grain_share * found[0][2]):
        return None
    (w, h), (full_w, full_h) = crop.size_wh, original.size_wh
    x, y = (round(v * step) for v in found[0][:2])
    x1, y1, x2, y2 = max(0, x - 2 * step), max(0, y - 2 * step), min(full_w, x + w + 2 * step), min(full_h, y + h + 2 * step)
    if x2 - x1 < w or y2 - y1 < h:
        return None
    pair = Pair(Plane(original.full()).window(x1, y1, x2, y2), Plane(crop.full()), BAND_PX)
    scores = correlation_map(band_pass(pair.original.pixels, BAND_PX), pair.target())
    _, _, _, (dx, dy) = cv2.minMaxLoc(scores)
    fit = register(
        pair,
        places.shifted(float(x1 + dx - pair.edge_px), float(y1 + dy - pair.edge_px)),
        "shift",
        iterations=s.iterations,
        robust=False,
    )
    return Found(fit, compare(pair, fit.place, s), "ncc", pair)
