"""Grain: finds plain crops of skies and walls by what is left in them, the noise of sensor or film that both files share.

Smoothing and whole grey levels would take it away: planes are averaged without rounding here, and compared as they are.

Grain that correlates weakly is proof as well if there is enough of it: of n pixels of unlike noise the correlation has a standard
deviation of about 1 / sqrt(n), so that 0.15 over a window of 128 px is no chance, and several such windows that ask for the same pixel are
even less.  What two files of one camera or scanner share otherwise, a fixed pattern or dust, is taken to be weaker, or to lie at one spot.
"""

from __future__ import annotations

import math
from collections import Counter

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.follow import Found, compare
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine
from cropreg.matching.plane import Pair, Plane, band_pass
from cropreg.matching.register import register
from cropreg.matching.search import bands_map, peaks
from cropreg.matching.settings import MatcherSettings

BAND_PX = 9  # grain has no wider structure
MIDDLE_PX = 512  # sides of the part of a crop that is compared at full size: enough to tell by, and 10 MB instead of 300
REACH_PX = 16  # to either side: two blocks of a JPEG, whose grid is no grain and fits at both
LEAST_WINDOW_PX = 48  # smaller ones correlate by chance
TEMPLATE_PX = 128  # side of the part that is looked for everywhere, and
BLOCK_PX = 768  # of the squares in which it is, one after the other: 15 MB
STRIP_PX = 2**20  # pixels averaged at a time, so that no large picture is float32 as a whole


def averaged(plane: Plane, factor: int) -> Plane:
    """Like :meth:`Plane.reduced`, in float32 and without rounding."""
    w, h = (n // factor for n in plane.size_wh)
    pixels = np.empty((h, w), np.float32)
    rows = max(1, STRIP_PX // (factor**2 * max(1, w)))
    for y in range(0, h, rows):
        strip = plane.pixels[y * factor : min(y + rows, h) * factor, : w * factor].astype(np.float32)
        pixels[y : y + rows] = cv2.resize(strip, (w, len(strip) // factor), interpolation=cv2.INTER_AREA)
    return Plane(pixels, (plane.step_xy[0] * factor, plane.step_xy[1] * factor), plane.shift_xy)


def by_grain(original: Picture, crop: Picture, whole: Plane, part: Plane, s: MatcherSettings) -> Found | None:
    """The place of a plain crop where the grain of ``whole`` and ``part`` correlates best, its middle compared at full size.

    ``whole`` and ``part`` are both pictures, averaged alike.  None where a second place correlates nearly as well: then it is no grain
    but the grid of JPEG's blocks, or a pattern.
    """
    step = round(whole.step)
    found = peaks(bands_map(band_pass(whole.pixels, BAND_PX), band_pass(part.pixels, BAND_PX)), 2, apart_px=4)
    if not found or (len(found) > 1 and found[1][2] > s.grain_share * found[0][2]):
        return None
    (w, h), (full_w, full_h) = crop.size_wh, original.size_wh
    x, y = (round(v * step) for v in found[0][:2])
    left, top = max(0, (w - MIDDLE_PX) // 2), max(0, (h - MIDDLE_PX) // 2)
    middle = Plane(crop.full()).window(left, top, w - left, h - top)
    (mw, mh), reach = middle.size_wh, 2 * step
    x1, y1 = max(left, x + left - reach), max(top, y + top - reach)  # the whole crop lies inside
    x2, y2 = min(full_w - w + left + mw, x + left + mw + reach), min(full_h - h + top + mh, y + top + mh + reach)
    if x2 - x1 < mw or y2 - y1 < mh:
        return None
    pair = Pair(Plane(original.full()).window(x1, y1, x2, y2), middle, BAND_PX)
    scores = bands_map(band_pass(pair.original.pixels, BAND_PX), pair.target)
    _, _, _, (dx, dy) = cv2.minMaxLoc(scores)
    fit = register(
        pair,
        places.shifted(float(x1 + dx - left - pair.edge_px), float(y1 + dy - top - pair.edge_px)),
        "shift",
        iterations=s.iterations,
        robust=False,
    )
    return Found(fit, compare(pair, fit.place, s), "ncc", pair)


def same_grain(original: Plane, crop: Plane, place: Affine, s: MatcherSettings) -> Affine | None:
    """The place to the whole pixel at which nearly every part of a plain crop shows the original's grain; both planes full-size.

    ``place`` is where the crop, which was only cut out, lies to ``REACH_PX``.  None where the parts do not agree.  Cost: 5 ms.
    """
    (w, h), (full_w, full_h) = crop.size_wh, original.size_wh
    side = min(s.window_px, w // 2, h // 2)
    if side < LEAST_WINDOW_PX:
        return None
    left, top = (round(float(v)) for v in place[:, 2])
    wishes: Counter[tuple[int, int]] = Counter()
    lefts, tops = (np.linspace(0, n - side, min(s.windows_per_side, n // side)).astype(int).tolist() for n in (w, h))
    for y in tops:
        for x in lefts:
            x1, y1 = max(0, left + x - REACH_PX), max(0, top + y - REACH_PX)
            x2, y2 = min(full_w, left + x + side + REACH_PX), min(full_h, top + y + side + REACH_PX)
            if x2 - x1 < side or y2 - y1 < side:
                continue
            template = band_pass(crop.window(x, y, x + side, y + side).pixels.astype(np.float32), BAND_PX)
            scores = bands_map(band_pass(original.window(x1, y1, x2, y2).pixels.astype(np.float32), BAND_PX), template)
            best = _clear_peak(peaks(scores, 2, apart_px=2), s)
            if best is not None:
                wishes[x1 + best[0] - x, y1 + best[1] - y] += 1
    ((x, y), agreeing), *_ = wishes.most_common(1) or [((0, 0), 0)]
    inside = 0 <= x <= full_w - w and 0 <= y <= full_h - h
    return places.shifted(float(x), float(y)) if inside and agreeing >= s.grain_agreeing * len(lefts) * len(tops) else None


def anywhere(original: Plane, crop: Plane, s: MatcherSettings) -> Affine | None:
    """The place at which the grain in the middle of a plain crop correlates best, looked for at every pixel; both planes full-size.

    None where it correlates nearly as well elsewhere.  Cost: 25 ms a megapixel.
    """
    (w, h), (full_w, full_h) = crop.size_wh, original.size_wh
    if w > full_w or h > full_h or min(w, h) < 2 * LEAST_WINDOW_PX:  # no two windows could agree
        return None
    edge = BAND_PX // 2  # what lies nearer to the crop's border was band-passed without its surroundings
    tw, th = min(w - 2 * edge, TEMPLATE_PX), min(h - 2 * edge, TEMPLATE_PX)
    x, y = (w - tw) // 2, (h - th) // 2
    template = _band_inside(crop, x, y, x + tw, y + th)
    found: list[tuple[float, float, float]] = []
    for top in range(edge, full_h - edge - th + 1, BLOCK_PX):
        for left in range(edge, full_w - edge - tw + 1, BLOCK_PX):
            right, bottom = min(left + BLOCK_PX + tw - 1, full_w - edge), min(top + BLOCK_PX + th - 1, full_h - edge)
            best = peaks(bands_map(_band_inside(original, left, top, right, bottom), template), 2, apart_px=4)
            found += [(left + px, top + py, ncc) for px, py, ncc in best]
    found.sort(key=lambda peak: -peak[2])
    apart = [p for p in found[1:] if max(abs(p[0] - found[0][0]), abs(p[1] - found[0][1])) > 4]  # two blocks may see one peak
    clear = _clear_peak([*found[:1], *apart], s)
    return None if clear is None else places.shifted(float(clear[0] - x), float(clear[1] - y))


def _band_inside(plane: Plane, x1: int, y1: int, x2: int, y2: int) -> NDArray[np.float32]:
    """A window at least ``BAND_PX // 2`` away from the plane's border, band-passed with what surrounds it."""
    edge = BAND_PX // 2
    pixels = plane.window(x1 - edge, y1 - edge, x2 + edge, y2 + edge).pixels
    return band_pass(pixels, BAND_PX)[edge:-edge, edge:-edge]


def _clear_peak(found: list[tuple[float, float, float]], s: MatcherSettings) -> tuple[int, int] | None:
    """The first peak to the whole pixel, if it is high enough and none comes near it: a pattern fits elsewhere, but not as well."""
    if not found or found[0][2] < s.grain_ncc:
        return None
    if len(found) > 1 and found[1][2] > s.grain_share * found[0][2]:
        first, second = (math.atanh(min(ncc, 0.999)) for _, _, ncc in found[:2])  # Fisher, Metron 1, 1921: their errors are alike
        if first - second < s.grain_clear:
            return None
    return round(found[0][0]), round(found[0][1])
