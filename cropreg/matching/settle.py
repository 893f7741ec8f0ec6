"""Settle: was the scale kept?  Is the box exact?  Did parts of the picture move?  Full-size pixels only where the planes leave doubt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.fine import (
    Rectangle,
    Window,
    apart,
    choose_windows,
    common_place,
    common_shift,
    distances_px,
    moved_windows,
    register_windows,
    spread_px,
    window_at,
)
from cropreg.matching.follow import Found, closer, compare, convinces, paired, plausible, refit, whole_step
from cropreg.matching.local import Displacements, lean, pull_at_edges
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine
from cropreg.matching.plane import Plane
from cropreg.matching.register import register
from cropreg.matching.residual import coarser_steps, unexplained
from cropreg.matching.rounding import SNAPPED
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.unrest import look_for_unrest
from cropreg.matching.verify import quantile

SAME_PX = 1.0  # original px; two places whose windows end nearer to each other are one
SIGMAS, RESIZED_PX = 3.0, 0.08
"""Of a resized crop: what least squares is too sure by, and what the unknown kernel and the rounded size add, in crop px (of 250 crops)."""


@dataclass(frozen=True)
class Settled:
    """A place settled as well as it can be.

    ``kept`` says that the crop was neither resized nor turned, so that the box is whole.  ``error_px`` is the predicted standard
    deviation of its edges in original pixels.  ``windows`` are the full-size windows that
    could be compared, of ``tried``; None when none were needed.  ``moved`` counts those whose content lies elsewhere, or tiles of the
    planes where most have moved so far that no window had to be asked.
    ``confirmed`` says that most windows of a crop that was only cut out ask for this very pixel, which chance makes one in a thousand do.
    ``unexplained`` is what neither the original nor the crop's own coding explains, about 1 for true crops; None where it was not asked.
    ``doubted`` says that nothing in the windows gave rise to that question: the crop is small and something else looks much like it, or
    full-size pixels were at hand.
    ``same_grain`` says that all of the crop shows the original's grain in this place alone, which proves it.
    """

    found: Found
    place: Affine
    kept: bool
    error_px: float
    windows: list[Window] | None = None
    tried: int = 0
    moved: int = 0
    confirmed: bool = False
    unexplained: float | None = None
    same_grain: bool = False
    doubted: bool = False

    def may_be_mirage(self, s: MatcherSettings) -> bool:
        """Whether the tiles do not convince, or most full-size windows see something else there; and not the same thing moved."""
        agreeing = sum(window.rest < s.window_rest for window in self.windows or [])
        strange = (self.unexplained or 0.0) >= s.another_picture  # as another row of a pattern is
        still = self.moved <= 1 or 2 * len(self.windows or []) < self.tried  # the few that fit something there may fit it by chance
        return still and (strange or 2 * agreeing < self.tried or not convinces(self.found, s))


def settle(
    original: Picture, crop: Picture, found: Found, kept: bool, s: MatcherSettings, *, alone: bool = True, repeats: bool = False
) -> Settled:
    """Goes to full size with a place of :func:`kept_or_free` if its predicted error or the tiles ask for it, or if the crop ``repeats``.

    ``alone`` says that nothing else in the original looks much like the crop.  Where other places fit nearly as well planes may show a
    fine texture so coarsely that it seems to lie pixels off.
    """
    unrest = look_for_unrest(found, kept, s)
    if unrest.stretch_px is not None:
        found = replace(found, fit=replace(found.fit, place=places.stretched(found.place, crop.size_wh, unrest.stretch_px)))
    noisy = not kept and places.scale(found.place) > 1 / s.rescan_scale  # it shows all of the noise, or another one
    same_size = noisy and places.scale(found.place) < s.rescan_scale
    # Few tiles have texture, or they hardly agree: windows must stand for them.
    sure = convinces(found, s) or (found.evidence.tiles >= s.sure_tiles and found.evidence.median >= s.fair_median)
    # Longer than an export's rounding makes it, and told in one line: there it is the line that has become thicker.
    odd = not kept and unrest.spread < s.telling_spread
    odd = odd and _stretched_px(found.place, crop.size_wh) * places.scale(found.place) > s.odd_aspect_px
    size = max(s.window_px, round(s.window_px * places.scale(found.place)))
    # A small crop of an edge fits others, too.
    doubted = not alone and math.prod(max(1, n // size) for n in crop.size_wh) < s.least_edge_windows
    calm = unrest.calm and sure and found.evidence.low >= s.calm_low and unrest.drift_px < s.certain_drift_px
    if calm and not (noisy or odd or repeats) and _is_exact(found, kept, s):
        left_over = unexplained_at(original, crop, _whole(found.place) if kept else found.place, s) if doubted else None
        return Settled(found, found.place, kept, _error_px(found, kept), unexplained=left_over, doubted=doubted)
    if unrest.apart >= s.sure_moving_median and unrest.tiles >= s.sure_moving_tiles:
        return Settled(found, found.place, kept, _error_px(found, kept), [], moved=unrest.tiles)
    full_o, full_c = Plane(original.full()), Plane(crop.full())
    per_side = s.windows_per_side if not kept or not sure or not unrest.calm else s.calm_windows_per_side
    texture = _reduced_to(crop.search_plane, s.map_step_px)

    def chosen(per_side: int) -> list[Rectangle]:
        evenly = choose_windows(texture, crop.size_wh, size, per_side, found.evidence.unlike)
        return apart(evenly + [window_at(center, size, crop.size_wh) for center in unrest.suspects])

    look = partial(
        register_windows, full_o, full_c, smooth_px=s.smooth_px, band_px=s.band_px,
        iterations=s.iterations, reach_px=s.reach_px, least_ncc=s.window_ncc, clear_ncc=s.sure_median, most_sigma_px=s.window_sigma,
    )  # fmt: skip
    start = place = common = _whole(found.place) if kept else found.place
    rectangles = chosen(per_side)
    windows, error_px, confirmed = look(start, rectangles=rectangles), _error_px(found, kept), False
    if kept and windows:
        shift, error_px = common_shift(windows)
        wanted = start[:, 2] + shift
        whole = np.round(wanted)
        between = float(np.abs(wanted - whole).max())
        noisy = between > max(s.whole_px, s.whole_sigmas * error_px)  # sampled anew, or scanned
        # An edit of tone moves the windows of a smooth picture each its own way, by more than their errors.
        kept = not noisy or between <= s.whole_spreads * spread_px(windows)
        common = places.shifted(*(wanted if noisy else whole))
        place = places.shifted(*np.clip(whole, 0, np.subtract(original.size_wh, crop.size_wh))) if kept else common
        same_size = not kept
        apart_px = distances_px(windows, start, place)
        confirmed = kept and (apart_px < s.agreeing_px).sum() >= max(s.least_edge_windows, s.agreeing_share * len(windows))
        scattered_px = float(np.quantile(apart_px, 0.75, method="inverted_cdf"))
        disagreeing_px = spread_px(windows) if noisy else 0.0
        error_px = scattered_px if scattered_px > s.scattered_px else max(error_px, disagreeing_px)
        if noisy or moved_windows(windows, start, common, s.moved_px, s.moved_ratio):
            if per_side < s.windows_per_side:
                rectangles = chosen(s.windows_per_side)
                windows = look(start, rectangles=rectangles)
            free = _moved_as_one(windows, start, common, s)
            if free is not None and crop.rounding_steps is not None:  # else another frame could not be told from it
                kept, confirmed, noisy, same_size = False, False, True, True
                place = common = free
                error_px = _windows_error_px(windows, start, free, RESIZED_PX)
    elif not kept and len(windows) >= 3:
        # One that was only turned, or scanned anew, has one scale; an export rounds each side.
        rounding_px = 0.0 if _is_near(place, s.kept_scale, 180.0) else 0.5 / places.scale(place)
        common = common_place(windows, start, rounding_px, s.telling_rest)
        # A neighbouring frame has no exact edges: its parts move, each its own way.
        agreed = unrest.median <= s.moving_median or np.median(distances_px(windows, start, common)) < s.agreeing_px
        if len(windows) >= s.least_edge_windows and agreed:
            if np.median([np.hypot(*w.shift_px) for w in windows]) > s.again_px:
                start = common
                windows = look(start, rectangles=rectangles)
                common = common_place(windows, start, rounding_px, s.telling_rest) if len(windows) >= 3 else start
            place, error_px = common, _windows_error_px(windows, start, common, 0.0 if same_size else RESIZED_PX)
            odd = False
    if not kept and len(windows) < s.least_edge_windows:
        nearer = None
        if found.evidence.tiles >= s.sure_tiles:
            nearer = closer(original, crop, found, s, long_side_px=s.finest_px)
            nearer = nearer and _stretched(nearer, s)
        if nearer is not None and nearer.fit.converged and nearer.fit.sigma_px < found.fit.sigma_px:
            if plausible(nearer, s):
                found, place, common, error_px = nearer, nearer.place, nearer.place, _error_px(nearer, kept)
            elif nearer.evidence.band >= s.whole_band:  # tiles of a smooth picture hold little but JPEG's noise at this resolution
                found = replace(nearer, evidence=found.evidence)
                place, common, error_px = found.place, found.place, _error_px(found, kept)
        error_px = max(error_px, _windows_error_px(windows, start, place, 0.0)) if windows else error_px
    error_px = max(error_px, _stretched_px(place, crop.size_wh)) if odd else error_px
    moved = moved_windows(windows, start, common, s.moved_sure_px if confirmed else s.moved_px, s.moved_ratio)
    doubted = doubted and not (noisy or moved)
    asked = bool(noisy or moved or doubted) and not is_burst(moved, windows, s)
    left_over = unexplained_at(original, crop, place, s) if asked else None
    if windows and not asked and not moved and np.median([w.left for w in windows]) >= s.rounded:
        # Full-size pixels are at hand: another frame in which nothing moved has other noise.
        left_over = unexplained_at(original, crop, place, s)
        least = s.other_noise if kept or same_size else s.other_noise_shrunk
        doubted, left_over = True, left_over if left_over is not None and left_over >= least else None
    return Settled(found, place, kept, error_px, windows, len(rectangles), moved, confirmed, left_over, doubted=doubted)


def _moved_as_one(windows: list[Window], start: Affine, place: Affine, s: MatcherSettings) -> Affine | None:
    """Where a stretch and a turn put most of the windows that a mere shift to ``place`` leaves apart; None if they do not."""
    if len(windows) < s.least_edge_windows:
        return None
    free = common_place(windows, start, 0.5, s.telling_rest)
    left_px, apart_px = (quantile(distances_px(windows, start, p), 0.75) for p in (free, place))
    return free if left_px < s.stretched_share * apart_px else None


def _stretched_px(place: Affine, crop_wh: tuple[int, int]) -> float:
    """How much longer the shorter side of a crop is by its two scales than by their mean, original pixels."""
    scale_x, scale_y = places.scales(place)
    return abs(math.log(scale_x / scale_y)) / 2 * min(crop_wh) / places.scale(place)


def is_burst(moved: int, windows: list[Window], s: MatcherSettings) -> bool:
    """Whether so many of the windows have moved that they alone tell a neighbouring frame."""
    return moved >= max(s.burst_windows, s.burst_share * len(windows))


def _whole(place: Affine) -> Affine:
    """The place of a crop that was only cut out, in whole pixels."""
    return places.shifted(*np.round(place[:, 2]))


def unexplained_at(original: Picture, crop: Picture, place: Affine, s: MatcherSettings) -> float | None:
    """:func:`unexplained`; where that is too much, whether the crop was saved twice, or made black and white, is looked at, too.

    Of a file that rounds nothing away an earlier one is looked for at once: what that has left is easily explained.  None where it is
    not known what the file has rounded away.
    """
    steps = crop.rounding_steps
    if steps is None:
        return None
    full_o, full_c, corner = Plane(original.full()), Plane(crop.full()), crop.block_corner_xy
    left_over = None
    if steps.max() >= SNAPPED:
        left_over = unexplained(full_o, full_c, place, steps, corner, enough=s.most_unexplained)
        if left_over is None or left_over < s.most_unexplained:
            return left_over
    earlier = coarser_steps(full_c, steps, corner)
    steps = steps if earlier is None else earlier
    if left_over is None or earlier is not None:
        left_over = unexplained(full_o, full_c, place, steps, corner, enough=s.most_unexplained)
    if left_over is None or left_over < s.most_unexplained or not crop.is_colourless:
        return left_over
    return unexplained(full_o, full_c, place, steps, corner, original.colours(), enough=s.most_unexplained)


def _error_px(found: Found, kept: bool) -> float:
    """The predicted error of the edges as the planes tell it, original pixels."""
    sigma = found.fit.sigma_px
    return sigma if kept else float(np.hypot(SIGMAS * sigma, RESIZED_PX / places.scale(found.place)))


def _windows_error_px(windows: list[Window], start: Affine, place: Affine, resized_px: float) -> float:
    """The predicted error of the edges as the windows tell it: not less than by how much half of them disagree with the place."""
    if not windows:
        return float("inf")
    predicted = np.hypot(SIGMAS * common_shift(windows)[1], resized_px / places.scale(place))
    return float(max(predicted, np.median(distances_px(windows, start, place))))


def tell_apart(original: Picture, crop: Picture, found: Found, rivals: list[Affine], s: MatcherSettings) -> tuple[Found, bool]:
    """The best of a place and its rivals at full size, and whether another fits as well there.  Cost: the full decode, if any rivals.

    Windows that no place explains, as those of a sky, are not asked.
    """
    if not rivals:
        return found, False
    full_o, full_c = Plane(original.full()), Plane(crop.full())
    size = max(s.window_px, round(s.window_px * places.scale(found.place)))
    rectangles = choose_windows(_reduced_to(crop.search_plane, s.map_step_px), crop.size_wh, size, s.windows_per_side)
    candidates = [found.place, *rivals]
    centers = np.array([((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in rectangles])
    rests = np.ones((len(candidates), len(rectangles)))
    at_xy = np.stack([places.apply(place, centers) for place in candidates])
    for i, place in enumerate(candidates):
        windows = register_windows(
            full_o, full_c, place, rectangles=rectangles, smooth_px=s.smooth_px, band_px=s.band_px,
            iterations=s.iterations, reach_px=s.reach_px, least_ncc=0.02, clear_ncc=s.sure_median, most_sigma_px=np.inf,
        )  # fmt: skip
        of_center = {tuple(w.center_xy): w for w in windows}
        for k, center in enumerate(centers.tolist()):
            if (window := of_center.get(tuple(center))) is not None:
                rests[i, k] = window.rest
                at_xy[i, k] += window.shift_px
    telling = rests.min(0) < s.telling_rest
    telling = telling if telling.any() else slice(None)
    means = rests[:, telling].mean(1) + 0.002
    best = int(np.argmin(means))
    # The windows of one that lies a few pixels along an edge end at the very place: it is no other one.
    apart = np.abs(at_xy[:, telling] - at_xy[best, telling]).max((1, 2)) >= SAME_PX
    best = best if apart[0] else 0
    tied = bool((means[apart] < s.rival_ratio * means[best]).any())
    if best == 0:
        return found, tied
    scale = 1.0 if found.is_shift else places.scale(found.place)
    pair = paired(original, crop, whole_step(original, crop, scale), scale, s)
    return refit(replace(found, pair=pair), candidates[best], "shift", s), tied


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
    if shift is None and fits_inside and not leans and _is_near(free.place, s.most_kept_scale, s.most_kept_angle_deg):
        cx, cy = places.center(free.place, crop_wh)
        shift = refit(free, places.shifted(cx - crop_wh[0] / 2, cy - crop_wh[1] / 2), "shift", s)
    if shift is not None:
        gain = _rest(shift.fit.ncc) / _rest(free.fit.ncc)
        near = free is found or _is_near(free.place, s.most_kept_scale, s.most_kept_angle_deg)
        if (near and gain < s.free_gain) or (_is_near(free.place, s.kept_scale, s.kept_angle_deg) and gain < s.free_gain_exact):
            return shift, True
    return _stretched(free, s), False


def _stretched(found: Found, s: MatcherSettings) -> Found:
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


def _is_near(place: Affine, off_scale: float, off_angle_deg: float) -> bool:
    """Whether scale and angle are those of a crop as it was cut, within tolerances."""
    return max(abs(v - 1) for v in places.scales(place)) < off_scale and abs(places.angle_deg(place)) < off_angle_deg


def _is_exact(found: Found, kept: bool, s: MatcherSettings) -> bool:
    """Whether the predicted error allows to stop at the planes."""
    sigma = found.fit.sigma_px
    if not kept:
        return sigma * places.scale(found.place) < s.loose_px
    part = float(np.abs(found.place[:, 2] - np.round(found.place[:, 2])).max())
    return sigma < s.certain_px and part < s.certain_part


def _reduced_to(plane: Plane, step_px: int) -> Plane:
    """The plane at about ``step_px`` full-size pixels per pixel, as a map of where texture is; small planes stay as they are."""
    return plane.reduced(max(1, min(round(step_px / plane.step), min(plane.size_wh) // 24)))
