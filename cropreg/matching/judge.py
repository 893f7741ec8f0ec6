"""Judge: the verdict on a place that was settled, and how likely it is to be right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cropreg.boxes import Box
from cropreg.matching import place as places
from cropreg.matching.follow import convinces
from cropreg.matching.local import found_elsewhere, shared_slope
from cropreg.matching.match import Match
from cropreg.matching.rivals import Elsewhere
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.settle import SIGMAS, Settled, is_burst
from cropreg.matching.verify import Evidence

CALIBRATION = {"median": 0.17, "low": 1.72, "band": 1.2, "log_tiles": 1.23, "constant": -2.57}
"""Logistic regression on the best places of 700 right and wrong pairs, whatever their verdict (ridge 1); see benchmarks/matching.py."""

BY_GRAIN = 0.99
"""The probability of a plain crop proven by its grain: a guess, not calibrated; of the 20 that were made none is wrong."""


def answer(blank: Match, crop_wh: tuple[int, int], settled: Settled, elsewhere: Elsewhere, tied: bool, s: MatcherSettings) -> Match:
    """The match for a plausible place that was settled; ``blank`` carries the pictures' sizes."""
    place, found = settled.place, settled.found
    if settled.kept:
        assert blank.original_wh is not None
        x, y = (round(min(max(float(v), 0), o - c)) for v, o, c in zip(place[:, 2], blank.original_wh, crop_wh, strict=True))
        box, angle, scale = Box(float(x), float(y), float(x + crop_wh[0]), float(y + crop_wh[1])), 0.0, 1.0
    else:
        box = Box(*(round(v, 4) for v in places.to_box(place, crop_wh)))
        angle, scale = round(places.angle_deg(place), 5), round(places.scale(place), 6)
    score = found.evidence.score
    gap = score - (elsewhere.score or 0.0)
    strange, seen = (None, None) if settled.same_grain else (_by_tiles(settled, s), _by_windows(settled, s))
    told = 1.0  # how well its slopes tell the place
    verdict, reason = _verdict(settled, tied, [refusal for refusal in (strange, seen) if refusal], s)
    few = settled.windows is not None and len(settled.windows) < s.least_edge_windows
    asked = verdict == "found" and (few or settled.error_px > s.slope_px) and not (settled.confirmed or settled.same_grain)
    least_slope = s.least_slope_small if max(crop_wh) < s.slope_small_px else s.least_slope
    if asked and (slope := shared_slope(found.pair, found.place)) < least_slope:
        verdict, told = "doubtful", max(0.0, slope)
        reason = "Nothing in the crop tells where along one direction it lies: it shows hardly more than lines or noise."
    least_px = max(s.most_outside_px, 0.5 / scale + SIGMAS * settled.error_px)
    outside = places.outside_px(place, crop_wh, blank.original_wh or crop_wh) > least_px
    if verdict == "found" and outside:
        verdict, reason = (
            "doubtful",
            "A part of the crop lies beyond the original: a frame, a caption, or the window it was shown in.",
        )
    # Strong edits make the plain NCC of true places low, and skies that of all others high.
    sure = settled.same_grain or convinces(found, s) or _evenly(found.evidence, s) or _confirmed(settled, s)
    if verdict == "found" and gap < s.least_gap and not sure:
        verdict, reason = "doubtful", "Another place in the original correlates better with the crop."
    return replace(
        blank,
        verdict=verdict,
        reason=reason,
        box=box,
        angle_deg=angle,
        scale=scale,
        score=round(score, 6),
        gap=round(gap, 6),
        method=found.method,
        error_px=round(settled.error_px, 4),
        probability=round(told * _probability(settled, tied + outside + (strange is not None) + (seen is not None)), 4),
    )


def _verdict(settled: Settled, tied: bool, refused: list[tuple[str, str]], s: MatcherSettings) -> tuple[str, str | None]:
    """The verdict and why; ``refused`` is what :func:`_by_tiles` and :func:`_by_windows` say against it."""
    if settled.same_grain:
        return "found", None
    if refused:
        return next((verdict for verdict in refused if verdict[0] == "no_match"), refused[0])
    found, windows = settled.found, settled.windows
    loose = not settled.kept and found.fit.sigma_px * places.scale(found.place) > (
        s.unsure_px if convinces(found, s) else s.loose_px
    )
    loose = loose and len(windows or []) < s.least_edge_windows
    if loose or (not settled.kept and settled.error_px * places.scale(settled.place) > s.most_error_px):
        return "doubtful", "The place looks right, but too little of the crop has texture to tell its edges."
    if tied:
        return "ambiguous", "The crop fits equally well in more than one place."
    if not convinces(found, s) and not _confirmed(settled, s):
        if found.evidence.tiles < s.sure_tiles:
            return "doubtful", "One place fits, but too little of the crop has texture to be sure."
        if found.evidence.median < s.fair_median:
            return "doubtful", "The crop fits as a whole, but its parts are too dark or too much compressed to be sure."
        agreeing = sum(window.rest < s.window_rest for window in windows or [])
        if not settled.kept and found.evidence.low < s.resized_low and agreeing < s.least_grain_windows:
            return "doubtful", "A part of the crop fits, as a straight line does at any scale, but the rest does not."
    return "found", None


def _by_tiles(settled: Settled, s: MatcherSettings) -> tuple[str, str] | None:
    """Why parts of the crop that agree, while others show something else, make no match; None if they do."""
    found, evidence = settled.found, settled.found.evidence
    moved = 0
    if evidence.unlike.sum() >= s.depth_tiles:
        moved = found_elsewhere(found.pair, found.place, evidence.unlike, s.depth_reach, s.depth_ncc)
    windows = settled.windows
    vouched = convinces(found, s) or windows is None or any(window.rest < s.window_rest for window in windows)
    unlike = 0.0 if vouched else evidence.unlike_share
    if moved >= s.depth_sure_tiles or unlike >= s.unlike_sure:
        return "no_match", "Only parts of the crop agree with the original: it shows the scene from elsewhere, or another scene."
    if moved >= s.depth_tiles or unlike >= s.unlike_share or evidence.unlike.sum() > s.unlike_tiles * evidence.tiles:
        return "doubtful", "Only parts of the crop agree with the original: edited, or the scene from elsewhere."
    return None


def _by_windows(settled: Settled, s: MatcherSettings) -> tuple[str, str] | None:
    """Why what windows saw at full size makes no match; None if it does, or if none were needed."""
    found, windows, left_over = settled.found, settled.windows, settled.unexplained or 0.0
    if windows is not None and is_burst(settled.moved, windows, s):
        return "no_match", "Parts of the picture have moved: the crop comes from a neighbouring frame, not from this original."
    if left_over >= s.another_picture and not settled.doubted:
        return (
            "no_match",
            "The crop shows the same scene with other noise: another exposure or another scan, not this original.",
        )
    if left_over >= s.most_unexplained:
        return (
            "doubtful",
            "The crop differs from the original by more than its file format explains: edited, another scan, or a place that looks alike.",
        )
    if windows is None:
        return None
    lively = [window.rest for window in windows if window.energy >= s.lively]
    unlike = sum(rest >= s.lively_unlike for rest in lively)
    if len(lively) > 1 and (unlike > 1 or float(np.median(lively)) >= s.lively_rest):
        return (
            "doubtful",
            "At full size parts of the crop show something else: edited, or a page or a poster that only looks alike.",
        )
    if settled.moved > (0 if settled.kept else 1):  # at another scale one window may err by itself
        return "doubtful", "One part of the picture lies elsewhere in the original: edited, or a neighbouring frame."
    if not windows and (settled.kept or not convinces(found, s)):
        return "doubtful", "The place looks right, but nothing could be compared at full size."
    if windows and min(window.rest for window in windows) >= s.strange_rest:
        return "doubtful", "The place looks right from afar, but at full size no part of the crop agrees with the original."
    if found.is_shift and settled.error_px > s.scattered_px:
        return "doubtful", "The place looks right from afar, but at full size the parts of the crop ask for different places."
    if len(windows) < s.window_share * settled.tried and not convinces(found, s):
        return "doubtful", "At full size only a few parts of the crop agree with the original."
    return None


def _confirmed(settled: Settled, s: MatcherSettings) -> bool:
    """Whether windows at full size stand for tiles that have no texture: enough were asked, and most ask for the same, or all agree."""
    windows = settled.windows or []
    least = s.least_grain_windows if _evenly(settled.found.evidence, s) else s.least_edge_windows
    agree = len(windows) == settled.tried and len(windows) >= least
    return settled.confirmed or (agree and float(np.median([w.rest for w in windows])) < s.window_rest)


def _evenly(e: Evidence, s: MatcherSettings) -> bool:
    """Whether many tiles agree, and all about as well: grain, or a picture that is dark throughout."""
    return e.low >= s.even_median and e.tiles >= s.even_tiles


def _probability(settled: Settled, against: int) -> float:
    """The calibrated probability of the place, halved by each of so many things ``against`` it, by each part that moved, and if all
    windows failed."""
    if settled.same_grain:
        return BY_GRAIN
    failed = settled.windows == [] and not settled.moved  # none showed anything like the original
    return looks_right(settled.found.evidence) * 0.5 ** (settled.moved + against + failed)


def looks_right(e: Evidence) -> float:
    """The probability that a place with this evidence is right."""
    k = CALIBRATION
    logit = (
        k["median"] * e.median + k["low"] * e.low + k["band"] * e.band + k["log_tiles"] * max(e.median, 0.0) * math.log1p(e.tiles)
    )
    return 1 / (1 + math.exp(-logit - k["constant"]))
