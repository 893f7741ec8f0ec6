"""Rivals: does the crop fit elsewhere as well?  A good fit is evidence only when there is no second one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.fine import choose_windows, register_windows
from cropreg.matching.follow import LEAST_WHOLE_PX, Found, compare, paired, refit, whole_step
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine, compose, invert
from cropreg.matching.plane import EDGE_PX, Pair, Plane, band_pass, between
from cropreg.matching.register import COARSE_ITERATIONS, register
from cropreg.matching.rounding import BLOCK
from cropreg.matching.search import bands_map, correlation_map, reduction, summits, vertex
from cropreg.matching.settings import MatcherSettings

LEAST_COMPARED_PX = 8  # plane px; side of a part of a crop below which it is like anything
MOST_MOVES = 4
SLACK = 0.1  # correlation by which a crop may be less like itself than like a place beside: a move in whole pixels comes only near
SAME_PX = 1.0  # original px; two places whose windows end nearer to each other are one
MUCH_BORDER_PX = 40  # plane px; of smaller crops the border, which smoothing has mirrored, is a good part, and is left out


@dataclass(frozen=True)
class Elsewhere:
    """What lies elsewhere: the best plain correlation (None where the crop leaves no room), and places that fit nearly as well."""

    score: float | None
    places: list[Affine]


def rivals(original: Picture, crop: Picture, found: Found, s: MatcherSettings) -> Elsewhere:
    """Looks for other places of the same size and turn, at the scale of the search, and finer when the crop repeats itself or is tiny.

    Cost: a millisecond, or the correlation of the planes where the crop repeats itself; for tiny crops up to a quarter of a second.
    """
    judged, found = found, _on_whole_plane(original, crop, found, s)
    template, corner_xy = _on_grid(found)
    if min(template.shape) < 6:
        return Elsewhere(None, [])
    factor = reduction((template.shape[1], template.shape[0]), s.template_px)
    finer = min(2, factor)
    has_band = found.pair.bands is not None and template is found.pair.crop.pixels  # but for its border
    band = found.pair.target if has_band else band_pass(template, s.band_px)
    moves = repeated_by(band, s.repeat_px, s.repeat_ncc)
    # The scale of a small crop is not sure, nor is its place.
    repeats = bool(moves) or min(band.shape) // 2 < (s.repeat_px * 3 // 4 if found.is_shift else s.repeat_px)
    beside = repeated_by(judged.pair.target, s.repeat_px, s.beside_ncc) if moves or judged is not found else []
    levels = (factor, finer) if factor > finer and repeats else (factor,)
    best: float | None = None
    starts: list[tuple[float, float, float]] = []
    for k in levels:
        maps = _correlated(original, crop, found, template, k, s, plain=k == factor)  # closer, what is smooth tells nothing more
        # pixel centre c of the plane lies at (c + 0.5) / k - 0.5 on the reduced grid; so does the template's first, reduced alike
        here_x, here_y = (c / k for c in corner_xy)
        for is_band, scores in maps:
            x, y = round(here_x), round(here_y)
            at_place = float(scores[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max(initial=0.0))
            left, top, right, bottom = _room(found, (here_x, here_y), k, original.size_wh, crop.size_wh)
            inside = scores[top:bottom, left:right]
            for column, row, ncc in summits(inside, s.search_peaks, apart_px=s.rival_apart_px, but_near_xy=(x - left, y - top)):
                if not is_band:
                    best = ncc if best is None else max(best, ncc)
                if ncc > (max(0.3, s.rival_share * at_place) if is_band else at_place - s.rival_gap):
                    peak_x, peak_y = vertex(scores, left + column, top + row)
                    starts.append((ncc + is_band, (peak_x - here_x) * k, (peak_y - here_y) * k))
    starts.sort(reverse=True)
    near = _registered(
        found, starts[: 2 * s.search_peaks if repeats else s.search_peaks // 2], 1 if moves else factor, crop.size_wh, s
    )
    near += _beside(judged, beside, [place for _, place in near], crop.size_wh, s)
    scores_elsewhere = [score for score, _ in near] + ([best] if best is not None else [])
    return Elsewhere(max(scores_elsewhere, default=None), [place for _, place in near])


def _room(
    found: Found, here_xy: tuple[float, float], factor: int, original_wh: tuple[int, int], crop_wh: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a map, on which the place lies at ``here_xy``, where all of the crop is inside.

    A template without its border would fit beyond.
    """
    room = []
    sides = zip(found.place.tolist(), here_xy, found.pair.original.step_xy, original_wh, strict=True)
    for (a, b, at), here, step, length in sides:
        low, high = (at + pick(0.0, a * crop_wh[0]) + pick(0.0, b * crop_wh[1]) for pick in (min, max))
        room.append(
            (
                max(0, math.ceil(here - low / (factor * step) - 0.5)),
                max(0, math.floor(here + (length - high) / (factor * step) + 1.5)),
            )
        )
    (left, right), (top, bottom) = room
    return left, top, right, bottom


def _correlated(
    original: Picture, crop: Picture, found: Found, template: NDArray[np.float32], factor: int, s: MatcherSettings, *, plain: bool
) -> list[tuple[bool, NDArray[np.float32]]]:
    """The template's correlations with the original's plane, and whether of band-passed ones, without which go ``plain`` ones if asked for.

    None where the template is too large.  At the resolution of the search those of the search: its planes were not smoothed before,
    which hardly shows once they are reduced.
    """
    plane = found.pair.original
    if found.is_shift and factor > 1 and template is found.pair.crop.pixels:
        maps = crop.maps_in(original, s.template_px, s.band_px)
        reduced = plane.step_xy[0] * factor, plane.step_xy[1] * factor
        if maps is not None and maps.factor == factor and maps.whole.step_xy == reduced and maps.whole.shift_xy == plane.shift_xy:
            return [(False, maps.plain), (True, maps.banded)] if plain else [(True, maps.banded)]
    whole = plane.reduced(factor).pixels.astype(np.float32, copy=False)
    part = Plane(template).reduced(factor).pixels.astype(np.float32, copy=False)
    if part.shape[0] > whole.shape[0] or part.shape[1] > whole.shape[1]:
        return []
    banded = bands_map(band_pass(whole, s.band_px), found.pair.band(part))
    return [(False, correlation_map(whole, part)), (True, banded)] if plain else [(True, banded)]


def repeated_by(band: NDArray[np.float32], most_px: int, least_ncc: float) -> list[tuple[int, int]]:
    """By which moves (x, y) the liveliest part of a band-passed crop, at most ``most_px`` a side, is like its surroundings.

    At most four, best first.
    """
    h, w = band.shape
    side = min(most_px, min(h, w) // 2)
    reach = side // 2
    if side < LEAST_COMPARED_PX:
        return []
    energy = cv2.blur(band * band, (side, side))[side : h - side + 1, side : w - side + 1]
    _, _, _, (left, top) = cv2.minMaxLoc(energy)  # of the square's surroundings, which begin ``reach`` before it
    part = band[top + reach : top + reach + side, left + reach : left + reach + side]
    scores = bands_map(band[top : top + side + 2 * reach, left : left + side + 2 * reach], part)
    near = slice(max(1, reach - 3), reach + 4)
    others = scores.copy()
    others[near, near] = -1
    if others[1:-1, 1:-1].max(initial=-1) <= least_ncc:
        return []
    maxima = (others > least_ncc) & (scores >= cv2.dilate(scores, None))  # along an edge everything is alike, without a second one
    rows, columns = (at + 1 for at in np.nonzero(maxima[1:-1, 1:-1]))
    order = np.argsort(-scores[rows, columns], kind="stable")[:MOST_MOVES]
    return [(int(x) - reach, int(y) - reach) for x, y in zip(columns[order], rows[order], strict=True)]


def beyond_blocks(moves: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The moves, and ``BLOCK`` times as far: whole blocks apart, JPEG codes repeats alike."""
    return [(k * x, k * y) for k in (1, BLOCK) for x, y in moves]


def _ncc_with_itself(band: NDArray[np.float32], x: int, y: int) -> float:
    """The correlation of a band-passed crop with itself, moved."""
    h, w = band.shape
    here = band[max(0, y) : h + min(0, y), max(0, x) : w + min(0, x)]
    there = band[max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)]
    return float(cv2.matchTemplate(here, there, cv2.TM_CCORR_NORMED)[0, 0])


def _on_whole_plane(original: Picture, crop: Picture, found: Found, s: MatcherSettings) -> Found:
    """The same place on all of the original, where it was judged on a part of it at more resolution, or on too few pixels."""
    scale = 1.0 if found.is_shift else places.scale(found.place)
    step = whole_step(original, crop, scale)
    seen, whole = found.pair.original, original.search_plane
    covered_px = [n * step_ + whole.step for n, step_ in zip(seen.size_wh, seen.step_xy, strict=True)]
    if (
        step >= whole.step
        and seen.shift_xy == whole.shift_xy
        and all(have >= n * step_ for have, n, step_ in zip(covered_px, whole.size_wh, whole.step_xy, strict=True))
    ):
        return found
    return refit(replace(found, pair=paired(original, crop, step, scale, s)), found.place, "shift", s)


def _on_grid(found: Found) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The crop as an upright template (h, w) on the original's plane, and where its first pixel centre lies there.

    Of a turned crop only the largest upright part about its centre is taken.
    """
    part = found.pair.crop
    w, h = part.size_wh
    turn = abs(math.radians(places.angle_deg(found.place)))
    if turn < math.radians(0.3):
        if LEAST_WHOLE_PX <= min(w, h) < MUCH_BORDER_PX:
            part = part.window(EDGE_PX, EDGE_PX, w - EDGE_PX, h - EDGE_PX)
        x, y = between(found.pair.original, part, found.place)[:, 2].tolist()
        return part.pixels.astype(np.float32, copy=False), (x, y)
    matrix = between(found.pair.original, part, found.place)
    shrink = 1 / (math.cos(turn) + math.sin(turn) * max(w / h, h / w))
    inner_w, inner_h = max(4, int(w * shrink)), max(4, int(h * shrink))
    cx, cy = matrix[:, :2] @ np.array([(w - 1) / 2, (h - 1) / 2]) + matrix[:, 2]
    left, top = round(cx - inner_w / 2), round(cy - inner_h / 2)
    back = compose(invert(matrix), places.shifted(left, top))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    template = cv2.warpAffine(found.pair.crop.pixels, back, (inner_w, inner_h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return template.astype(np.float32, copy=False), (float(left), float(top))


def _registered(
    found: Found, starts: list[tuple[float, float, float]], factor: int, crop_wh: tuple[int, int], s: MatcherSettings
) -> list[tuple[float, Affine]]:
    """Registers rivals given as (order, x, y) moves in plane pixels: score and place of those that fit nearly as well as the place itself.

    Most fall at the first, coarsest level.
    """
    if not starts:
        return []
    original, crop = found.pair.original, found.pair.crop
    factors = [2**i for i in range(math.ceil(math.log2(factor + 1)) - 1, 0, -1) if min(crop.size_wh) >= 12 * 2**i]
    coarse = [found.pair.reduced(i) for i in factors]  # coarse to fine
    least = [_least_ncc(_rest(_ncc_near(pair, found.place)) + s.rival_coarse, s) for pair in coarse]
    least_here = _least_ncc(_rest(found.fit.ncc), s)
    apart = 2 * original.step
    result: list[tuple[float, Affine]] = []
    for _, move_x, move_y in starts:
        start = compose(places.shifted(move_x * original.step_xy[0], move_y * original.step_xy[1]), found.place)
        place = _followed(coarse, least, start, found.place, crop_wh)
        if place is None:
            continue
        fit = register(found.pair, place, "shift", iterations=s.iterations, tolerance_px=0.02, least_ncc=least_here)
        if fit.ncc <= least_here:
            continue
        if any(places.distance_px(fit.place, known, crop_wh) < apart for known in (found.place, *(place for _, place in result))):
            continue
        evidence = compare(found.pair, fit.place, s)
        if evidence.inside > s.least_inside:
            result.append((evidence.score, fit.place))
    return result


def _beside(
    found: Found, moves: list[tuple[int, int]], known: list[Affine], crop_wh: tuple[int, int], s: MatcherSettings
) -> list[tuple[float, Affine]]:
    """Score and place of those ``moves`` (x, y) in the crop's plane pixels, by which it repeats itself, that fit nearly as well.

    Places that are ``known`` are left out.
    """
    result: list[tuple[float, Affine]] = []
    seen, least = [found.place, *known], _least_ncc(_rest(found.fit.ncc), s)
    step_x, step_y = found.pair.grid.step_xy
    for x, y in beyond_blocks([move for move in moves if _ncc_with_itself(found.pair.target, *move) > least - SLACK]):
        start = compose(found.place, places.shifted(x * step_x, y * step_y))
        fit = register(found.pair, start, "shift", iterations=s.iterations, tolerance_px=0.02, least_ncc=least)
        if fit.ncc <= least or any(places.distance_px(fit.place, place, crop_wh) < found.pair.original.step for place in seen):
            continue
        evidence = compare(found.pair, fit.place, s)
        if evidence.inside > s.least_inside:
            seen.append(fit.place)
            result.append((evidence.score, fit.place))
    return result


def _ncc_near(pair: Pair, place: Affine) -> float:
    """The correlation at a place, to which this resolution comes as near as it can."""
    return register(pair, place, "shift", iterations=3, robust=False).ncc


def _followed(pairs: list[Pair], least_ncc: list[float], place: Affine, known: Affine, crop_wh: tuple[int, int]) -> Affine | None:
    """Where a rival leads on ever finer ``pairs``; None if it correlates by no more than ``least_ncc``, or slides back to ``known``.

    Along slow slopes of tone it takes many steps on the coarse ones, and would take more on finer ones.
    """
    for pair, least in zip(pairs, least_ncc, strict=True):
        fit = register(pair, place, "shift", iterations=2 * COARSE_ITERATIONS, robust=False, tolerance_px=0.1, least_ncc=least)
        if fit.ncc <= least or places.distance_px(fit.place, known, crop_wh) < pair.step:
            return None
        place = fit.place
    return place


def _least_ncc(own_rest: float, s: MatcherSettings) -> float:
    """The correlation above which a place is a rival of one that leaves ``own_rest``; not less than any candidate's."""
    return max(s.least_ncc, max(0.0, 1.002 - s.rival_look * own_rest) ** 0.5)


def _rest(ncc: float) -> float:
    """The share of the energy that a fit leaves unexplained, with a floor for rounding."""
    return 1.0 - max(ncc, 0.0) ** 2 + 0.002


def tell_apart(original: Picture, crop: Picture, found: Found, rivals: list[Affine], s: MatcherSettings) -> tuple[Found, bool]:
    """The best of a place and its rivals at full size, and whether another fits as well there.  Cost: the full decode, if any rivals.

    Windows that no place explains, as those of a sky, are not asked.
    """
    if not rivals:
        return found, False
    full_o, full_c = Plane(original.full()), Plane(crop.full())
    size = max(s.window_px, round(s.window_px * places.scale(found.place)))
    rectangles = choose_windows(crop.texture(s.map_step_px), crop.size_wh, size, s.windows_per_side)
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
