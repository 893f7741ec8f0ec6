"""Settle: was the scale kept?  Is the box exact?  Did parts of the picture move?  Full-size pixels only where the planes leave doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

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
from cropreg.matching.follow import Found, closer, convinces, plausible
from cropreg.matching.kept import is_near, stretched
from cropreg.matching.picture import SMALL_CROP_LONG_SIDE_PX, Picture
from cropreg.matching.place import Affine
from cropreg.matching.plane import Plane
from cropreg.matching.residual import coarser_steps, unexplained
from cropreg.matching.rounding import ASKED, ROUNDING, SNAPPED
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.unrest import Unrest, look_for_unrest
from cropreg.matching.verify import quantile

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


@dataclass(frozen=True)
class _Standing:
    """How a place stands, from one look at full size to the next.

    ``start`` is where the windows were registered from, ``common`` where most of them ask the crop to lie: that and ``place`` are one
    but for a crop that would reach beyond its original.  ``noisy`` says that the crop shows all of the original's noise, or another
    one, ``same_size`` that it was sampled anew without being shrunk, ``odd`` that its two scales differ and hardly anything tells why.
    """

    found: Found
    start: Affine
    place: Affine
    common: Affine
    kept: bool
    error_px: float
    windows: list[Window]
    rectangles: list[Rectangle]
    noisy: bool
    same_size: bool
    odd: bool
    confirmed: bool = False

    def at(self, place: Affine, error_px: float) -> _Standing:
        """At another place, off by so much."""
        return replace(self, place=place, common=place, error_px=error_px)


class _Looks:
    """The looks at full size: chooses windows of the crop, and registers them.  The first costs the full decode."""

    def __init__(self, original: Picture, crop: Picture, found: Found, unrest: Unrest, s: MatcherSettings) -> None:
        self._planes = Plane(original.full()), Plane(crop.full())
        self._crop, self._found, self._unrest, self._s = crop, found, unrest, s

    def choose(self, per_side: int) -> list[Rectangle]:
        """Where the crop has corners, and what seemed to have moved."""
        crop, s = self._crop, self._s
        size = _window_px(self._found, s)
        evenly = choose_windows(crop.texture(s.map_step_px), crop.size_wh, size, per_side, self._found.evidence.unlike)
        return apart(evenly + [window_at(center, size, crop.size_wh) for center in self._unrest.suspects])

    def at(self, start: Affine, rectangles: list[Rectangle]) -> list[Window]:
        """The windows that could be compared."""
        s = self._s
        return register_windows(
            *self._planes, start, rectangles=rectangles, smooth_px=s.smooth_px, band_px=s.band_px, iterations=s.iterations,
            reach_px=s.reach_px, least_ncc=s.window_ncc, clear_ncc=s.sure_median, most_sigma_px=s.window_sigma,
        )  # fmt: skip


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
    scale, whole = places.scale(found.place), _whole(found.place) if kept else found.place
    noisy = not kept and scale > 1 / s.rescan_scale
    # Longer than an export's rounding makes it, and told in one line: there it is the line that has become thicker.
    odd = not kept and unrest.spread < s.telling_spread and _stretched_px(found.place, crop.size_wh) * scale > s.odd_aspect_px
    # Few tiles have texture, or they hardly agree: windows must stand for them.
    sure = convinces(found, s) or (found.evidence.tiles >= s.sure_tiles and found.evidence.median >= s.fair_median)
    # A small crop of an edge fits others, too.
    doubted = not alone and math.prod(max(1, n // _window_px(found, s)) for n in crop.size_wh) < s.least_edge_windows
    calm = unrest.calm and sure and found.evidence.low >= s.calm_low and unrest.drift_px < s.certain_drift_px
    if calm and not (noisy or odd or repeats) and _is_exact(found, kept, s):
        left_over = unexplained_at(original, crop, whole, s) if doubted or _is_at_hand(original, crop) else None
        left_over = left_over if doubted else _too_much(left_over, original, found.place, kept, s)
        return Settled(found, found.place, kept, _error_px(found, kept), unexplained=left_over, doubted=True)
    if unrest.apart >= s.sure_moving_median and unrest.tiles >= s.sure_moving_tiles:
        return Settled(found, found.place, kept, _error_px(found, kept), [], moved=unrest.tiles)
    looks = _Looks(original, crop, found, unrest, s)
    per_side = s.windows_per_side if not kept or not sure or not unrest.calm else s.calm_windows_per_side
    rectangles = looks.choose(per_side)
    standing = _Standing(
        found, whole, whole, whole, kept, _error_px(found, kept), looks.at(whole, rectangles), rectangles,
        noisy, same_size=noisy and scale < s.rescan_scale, odd=odd,
    )  # fmt: skip
    if kept and standing.windows:
        standing = _as_cut(standing, looks, per_side, original, crop, s)
    elif not kept:
        standing = _resampled(standing, looks, unrest, s)
    if not standing.kept and len(standing.windows) < s.least_edge_windows:
        standing = _looked_at_closer(standing, original, crop, s)
    if standing.odd:
        standing = replace(standing, error_px=max(standing.error_px, _stretched_px(standing.place, crop.size_wh)))
    return _explained(standing, original, crop, s, doubted=doubted)


def _as_cut(standing: _Standing, looks: _Looks, per_side: int, original: Picture, crop: Picture, s: MatcherSettings) -> _Standing:
    """A crop that seems to be only cut out lies where its windows say, in whole pixels; else it was sampled anew, or scanned."""
    windows, start = standing.windows, standing.start
    shift, error_px = common_shift(windows)
    wanted = start[:, 2] + shift
    whole = np.round(wanted)
    between = float(np.abs(wanted - whole).max())
    noisy = between > max(s.whole_px, s.whole_sigmas * error_px)
    # An edit of tone moves the windows of a smooth picture each its own way, by more than their errors.
    kept = not noisy or between <= s.whole_spreads * spread_px(windows)
    common = places.shifted(*(wanted if noisy else whole))
    place = places.shifted(*np.clip(whole, 0, np.subtract(original.size_wh, crop.size_wh))) if kept else common
    apart_px = distances_px(windows, start, place)
    scattered_px = float(np.quantile(apart_px, 0.75, method="inverted_cdf"))
    error_px = scattered_px if scattered_px > s.scattered_px else max(error_px, spread_px(windows) if noisy else 0.0)
    confirmed = kept and (apart_px < s.agreeing_px).sum() >= max(s.least_edge_windows, s.agreeing_share * len(windows))
    standing = replace(
        standing.at(common, error_px), place=place, kept=kept, noisy=noisy, same_size=not kept, confirmed=bool(confirmed)
    )
    if not noisy and not moved_windows(windows, start, common, s.moved_px, s.moved_ratio):
        return standing
    if per_side < s.windows_per_side:
        rectangles = looks.choose(s.windows_per_side)
        windows = looks.at(start, rectangles)
        standing = replace(standing, windows=windows, rectangles=rectangles)
    free = _moved_as_one(windows, start, common, s)
    if free is None or crop.rounding_steps is None:  # then another frame could not be told from it
        return standing
    standing = replace(standing, kept=False, confirmed=False, noisy=True, same_size=True)
    return standing.at(free, _windows_error_px(windows, start, free, RESIZED_PX))


def _resampled(standing: _Standing, looks: _Looks, unrest: Unrest, s: MatcherSettings) -> _Standing:
    """A crop that was resized or turned lies where its windows agree, if there are enough of them."""
    windows, start = standing.windows, standing.start
    if len(windows) < 3:
        return standing
    # One that was only turned, or scanned anew, has one scale; an export rounds each side.
    rounding_px = 0.0 if is_near(start, s.kept_scale, 180.0) else 0.5 / places.scale(start)
    common = common_place(windows, start, rounding_px, s.telling_rest)
    # A neighbouring frame has no exact edges: its parts move, each its own way.
    agreed = unrest.median <= s.moving_median or np.median(distances_px(windows, start, common)) < s.agreeing_px
    if len(windows) < s.least_edge_windows or not agreed:
        return replace(standing, common=common)
    if np.median([np.hypot(*w.shift_px) for w in windows]) > s.again_px:
        start = common
        windows = looks.at(start, standing.rectangles)
        common = common_place(windows, start, rounding_px, s.telling_rest) if len(windows) >= 3 else start
    standing = replace(standing, start=start, windows=windows, odd=False)
    return standing.at(common, _windows_error_px(windows, start, common, 0.0 if standing.same_size else RESIZED_PX))


def _looked_at_closer(standing: _Standing, original: Picture, crop: Picture, s: MatcherSettings) -> _Standing:
    """Where too few windows could be compared, all of the crop at once is registered at more resolution."""
    found, nearer = standing.found, None
    if found.evidence.tiles >= s.sure_tiles:
        nearer = closer(original, crop, found, s, long_side_px=s.finest_px)
        nearer = nearer and stretched(nearer, s)
    if nearer is not None and nearer.fit.converged and nearer.fit.sigma_px < found.fit.sigma_px:
        looks_alike = plausible(nearer, s)
        # Tiles of a smooth picture hold little but JPEG's noise at this resolution.
        if looks_alike or nearer.evidence.band >= s.whole_band:
            nearer = nearer if looks_alike else replace(nearer, evidence=found.evidence)
            standing = replace(standing, found=nearer).at(nearer.place, _error_px(nearer, standing.kept))
    if not standing.windows:
        return standing
    told_px = _windows_error_px(standing.windows, standing.start, standing.place, 0.0)
    return replace(standing, error_px=max(standing.error_px, told_px))


def _explained(standing: _Standing, original: Picture, crop: Picture, s: MatcherSettings, *, doubted: bool) -> Settled:
    """What moved, and, where that or the noise gives rise to the question, what nothing explains."""
    windows, place = standing.windows, standing.place
    least_px = s.moved_sure_px if standing.confirmed else s.moved_px
    moved = moved_windows(windows, standing.start, standing.common, least_px, s.moved_ratio)
    doubted = doubted and not (standing.noisy or moved)
    asked = bool(standing.noisy or moved or doubted) and not is_burst(moved, windows, s)
    left_over = unexplained_at(original, crop, place, s) if asked else None
    if windows and not asked and not moved and np.median([w.left for w in windows]) >= s.rounded:
        doubted = True
        left_over = _too_much(unexplained_at(original, crop, place, s), original, place, standing.kept or standing.same_size, s)
    return Settled(
        standing.found, place, standing.kept, standing.error_px, windows, len(standing.rectangles), moved, standing.confirmed, left_over,
        doubted=doubted,
    )  # fmt: skip


def _is_at_hand(original: Picture, crop: Picture) -> bool:
    """Whether full-size pixels are at hand, or are of a crop so small that most such pairs ask for them.

    Told by the two files, not by what was decoded before, or verdicts would depend on the order of crops.
    """
    return crop.factor == 1 and (original.factor == 1 or max(crop.size_wh) < SMALL_CROP_LONG_SIDE_PX)


def _too_much(left_over: float | None, original: Picture, place: Affine, same_size: bool, s: MatcherSettings) -> float | None:
    """What is left over, if only other noise explains so much, as that of another frame in which nothing moved; None if not.

    The crop may have been cut from what the original was saved of: what that file has rounded away is allowed for.
    """
    steps = original.rounding_steps
    if left_over is None or steps is None:
        return None
    rounded = float(np.median(steps[ASKED])) ** 2 / 12 * min(1.0, places.scale(place)) ** 2
    least = (s.other_noise if same_size else s.other_noise_shrunk) + rounded / ROUNDING
    return left_over if left_over >= least else None


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


def _window_px(found: Found, s: MatcherSettings) -> int:
    """The side of a window in crop pixels: that of one in the original, if the crop was enlarged."""
    return max(s.window_px, round(s.window_px * places.scale(found.place)))


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


def _is_exact(found: Found, kept: bool, s: MatcherSettings) -> bool:
    """Whether the predicted error allows to stop at the planes."""
    sigma = found.fit.sigma_px
    if not kept:
        return sigma * places.scale(found.place) < s.loose_px
    part = float(np.abs(found.place[:, 2] - np.round(found.place[:, 2])).max())
    return sigma < s.certain_px and part < s.certain_part
