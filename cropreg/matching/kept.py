"""Kept: was the crop only cut out, or resized or turned as well?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.follow import Found, compare, convinces, paired, refit
from cropreg.matching.local import Displacements, lean, pull_at_edges
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine
from cropreg.matching.register import register
from cropreg.matching.settings import MatcherSettings


def kept_or_free(original: Picture, crop: Picture, found: Found, s: MatcherSettings) -> tuple[Found, bool]:
    """Was the crop only cut out, or resized or turned as well?  The simplest model stands unless the next explains clearly more.

    Where the tiles of a shift tell that nothing is left, nothing is asked, and where they tell of more, it is not taken for a shift: of
    a crop with noise or tones of its own no model explains much more than another.  A large crop found at its own scale is asked at half
    the plane's resolution, which shows a turn or a stretch as well.
    """
    crop_wh, original_wh = crop.size_wh, original.size_wh
    fits_inside = crop_wh[0] <= original_wh[0] and crop_wh[1] <= original_wh[1]
    shift: Found | None = found if found.is_shift and fits_inside else None
    start = found.place
    if shift and convinces(shift, s) and _lies_flat(shift, s):
        return shift, True
    leans = shift is not None and _leans(shift, s)
    if shift and not leans:
        pair, as_it_is = found.pair, shift.fit.ncc
        if min(pair.crop.size_wh) >= s.ask_coarse_px:
            if pair.bands and pair.original.size_wh == original.search_plane.size_wh:
                pair = paired(original, crop, 2 * pair.step, 1.0, s)
            else:
                pair = pair.reduced(2)
            as_it_is = register(pair, start, "shift", iterations=1, robust=False).ncc
        asked = register(pair, start, "similarity", iterations=s.iterations, robust=False, tolerance_px=0.05)
        if _rest(as_it_is) < s.free_gain * _rest(asked.ncc):
            return shift, True
        start = asked.place if asked.converged else start
    free = found if found.fit.model in ("similarity", "free") else refit(found, start, "similarity", s)
    scale = places.scale(free.place)
    if free.fit.converged and abs(scale * found.pair.step / found.pair.crop.step - 1) > s.repair and found.pair.crop.step > 1:
        free = refit(replace(free, pair=paired(original, crop, found.pair.step, scale, s)), free.place, "similarity", s)
    if not free.fit.converged or free.evidence.inside <= s.least_inside or _rest(free.fit.ncc) > s.free_gain * _rest(found.fit.ncc):
        free = found
    elif leans:
        shift = None
    if shift is None and fits_inside and not leans and is_near(free.place, s.most_kept_scale, s.most_kept_angle_deg):
        cx, cy = places.center(free.place, crop_wh)
        shift = refit(free, places.shifted(cx - crop_wh[0] / 2, cy - crop_wh[1] / 2), "shift", s)
    if shift is not None:
        gain = _rest(shift.fit.ncc) / _rest(free.fit.ncc)
        near = free is found or is_near(free.place, s.most_kept_scale, s.most_kept_angle_deg)
        if (near and gain < s.free_gain) or (is_near(free.place, s.kept_scale, s.kept_angle_deg) and gain < s.free_gain_exact):
            return shift, True
    return stretched(free, s), False


def stretched(found: Found, s: MatcherSettings) -> Found:
    """With a scale for each axis, if that explains clearly more."""
    fit = register(found.pair, found.place, "free", iterations=s.iterations)
    if fit.converged and _rest(found.fit.ncc) > s.free_gain * _rest(fit.ncc):
        return replace(found, fit=fit, evidence=compare(found.pair, fit.place, s))
    return found


def _lies_flat(found: Found, s: MatcherSettings) -> bool:
    """Whether a shift's tiles tell that neither a turn nor a stretch is left: then none needs to be registered."""
    pull_px, error_px = _asked(pull_at_edges, found, s.motion_sigma, s) or (np.inf, np.inf)
    return pull_px < s.flat_px and error_px < s.flat_px / 2


def _leans(found: Found, s: MatcherSettings) -> bool:
    """Whether a shift's tiles clearly tell of a turn or a stretch."""
    pull_px, surely = _asked(lean, found, s.leaning_sigma, s) or (0.0, 0.0)
    return pull_px > s.leaning_px and surely > s.leaning_sure


def _asked(
    tell: Callable[[Displacements, NDArray[np.bool_], float], tuple[float, float]], found: Found, sigma: float, s: MatcherSettings
) -> tuple[float, float] | None:
    """What the small tiles ``tell`` that are predicted to be off by less than ``sigma`` plane px; None if there are too few."""
    small = found.displacements(s)[0]
    telling = small.sigmas_px < sigma * found.pair.step
    w, h = found.pair.grid.size_wh
    return tell(small, telling, w / h) if telling.sum() >= s.least_stretch_tiles else None


def _rest(ncc: float) -> float:
    """The share of the energy that a fit leaves unexplained, with a floor for rounding."""
    return 1.0 - ncc**2 + 1e-4


def is_near(place: Affine, off_scale: float, off_angle_deg: float) -> bool:
    """Whether scale and angle are those of a crop as it was cut, within tolerances."""
    return max(abs(v - 1) for v in places.scales(place)) < off_scale and abs(places.angle_deg(place)) < off_angle_deg
