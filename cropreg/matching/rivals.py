"""Rivals: does the crop fit elsewhere as well?  A good fit is evidence only when there is no second one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.follow import Found, compare
from cropreg.matching.place import compose, invert
from cropreg.matching.plane import Pair, Plane, band_pass, between
from cropreg.matching.register import coarse_to_fine
from cropreg.matching.search import correlation_map, peaks
from cropreg.matching.settings import MatcherSettings


@dataclass(frozen=True)
class Elsewhere:
    """What lies elsewhere: the best plain correlation (None where the crop leaves no room), and places that come near."""

    score: float | None
    places: list[Found]


def rivals(found: Found, crop_wh: tuple[int, int], s: MatcherSettings) -> Elsewhere:
    """Looks for other places of the same size and turn, at the scale of the search, and finer when the crop's texture is finer.

    Cost: below a millisecond unless the crop's texture is fine, then one correlation of the planes.
    """
    original = found.pair.original
    template, corner_xy = _on_grid(found)
    factor = max(1, min(round(max(template.shape) / s.template_px), min(template.shape) // 4))
    if min(template.shape) < 6:
        return Elsewhere(None, [])
    fine = float(band_pass(template, s.band_px).std())
    coarse = Plane(template).reduced(factor).pixels
    is_fine = float(band_pass(coarse.astype(np.float32), s.band_px).std()) < s.fine_texture * fine
    best: float | None = None
    starts: list[tuple[float, float, float]] = []
    for k in (factor, 1) if is_fine and factor > 1 else (factor,):
        whole = original.reduced(k).pixels.astype(np.float32, copy=False)
        part = Plane(template).reduced(k).pixels.astype(np.float32, copy=False)
        if part.shape[0] > whole.shape[0] or part.shape[1] > whole.shape[1]:
            continue
        # pixel centres: a corner at c plane pixels lies at (c + 0.5) / k - 0.5 on the reduced grid
        here_x, here_y = ((c + 0.5) / k - 0.5 + 0.5 * (1 - 1 / k) for c in corner_xy)
        for banded in (False, True):
            scores = correlation_map(*((band_pass(whole, s.band_px), band_pass(part, s.band_px)) if banded else (whole, part)))
            x, y = round(here_x), round(here_y)
            apart = 2 if factor > 1 and k > 1 else s.rival_apart_px
            at_place = float(scores[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max(initial=0.0))
            scores[max(0, y - apart) : y + apart + 1, max(0, x - apart) : x + apart + 1] = -1
            for peak_x, peak_y, ncc in peaks(scores, 2, apart_px=apart):
                if not banded:
                    best = ncc if best is None else max(best, ncc)
                if banded and ncc > max(0.3, s.rival_share * at_place):
                    starts.append((ncc, (peak_x - here_x) * k, (peak_y - here_y) * k))
    starts.sort(reverse=True)
    return Elsewhere(best, _registered(found, starts[: s.search_peaks], factor, crop_wh, s))


def _on_grid(found: Found) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The crop as an upright template (h, w) on the original's plane, and where its first pixel centre lies there.

    Of a turned crop only the largest upright part about its centre is taken.
    """
    w, h = found.pair.crop.size_wh
    matrix = between(found.pair.original, found.pair.crop, found.place)
    turn = abs(math.radians(places.angle_deg(found.place)))
    if turn < math.radians(0.3):
        return found.pair.crop.pixels.astype(np.float32, copy=False), (float(matrix[0, 2]), float(matrix[1, 2]))
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
) -> list[Found]:
    """Registers rivals given as (ncc, x, y) moves in plane pixels, and verifies them."""
    original, crop = found.pair.original, found.pair.crop
    result: list[Found] = []
    factors = [2**i for i in range(max(1, math.ceil(math.log2(factor + 1))) - 1, 0, -1)]
    pairs = [Pair(original.reduced(i), crop.reduced(i), s.band_px) for i in factors if min(crop.size_wh) >= 12 * i] + [found.pair]
    for _, move_x, move_y in starts:
        start = compose(places.shifted(move_x * original.step_xy[0], move_y * original.step_xy[1]), found.place)
        fit = coarse_to_fine(lambda level: pairs[-1 - level], len(pairs), start, "shift", iterations=8, least_ncc=s.least_ncc)
        if not fit.converged:
            continue
        known = [found, *result]
        if any(places.distance_px(fit.place, k.place, crop_wh) < 2 * original.step for k in known):
            continue
        evidence = compare(found.pair, fit.place, s)
        if evidence.inside > s.least_inside:
            result.append(replace(found, fit=fit, evidence=evidence))
    return result


def residual_ratio(found: Found, rival: Found) -> float:
    """How much worse the rival fits: its mean squared rest divided by that of the place."""
    return (rival.fit.residual + 1e-5) / (found.fit.residual + 1e-5)
