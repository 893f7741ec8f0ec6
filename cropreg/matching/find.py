"""Find: the order of the stages, cheap ones first, and the verdict.

Header (impossible pairs cost nothing) -> both pictures at 1/8 -> correlation at the same scale -> features -> a sweep of scales ->
correlation at half size -> uniqueness -> full-size windows where the predicted error or the displacements of tiles ask for them.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box
from cropreg.errors import UnreadableImage
from cropreg.matching import place as places
from cropreg.matching.features import by_features
from cropreg.matching.follow import Found, better, compare, convinces, follow, plausible
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Pair, Plane, band_pass
from cropreg.matching.register import register
from cropreg.matching.rivals import Elsewhere, residual_ratio, rivals
from cropreg.matching.search import at_same_scale, correlation_map, over_scales, peaks
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.settle import Settled, settle
from cropreg.storage import read_bytes

__all__ = ["Match", "MatcherSettings", "Picture", "find", "find_in"]

Source = str | os.PathLike[str] | bytes | NDArray[np.uint8]
DEFAULTS = MatcherSettings()


def find(original: Source, crop: Source, settings: MatcherSettings | None = None) -> Match:
    """Finds where ``crop`` was cut from ``original``: each a path, a URI, the bytes of a file, or uint8 pixels (grey or RGB).

    Never raises for a bad picture: the verdict says ``unreadable`` and the reason names it.
    """
    settings = settings or DEFAULTS
    try:
        pictures = [_picture(s, name, settings.max_pixels) for s, name in ((original, "original"), (crop, "crop"))]
    except UnreadableImage as error:
        return Match("unreadable", str(error))
    return find_in(*pictures, settings)


def _picture(source: Source, name: str, max_pixels: int) -> Picture:
    if isinstance(source, np.ndarray):
        return Picture.of_pixels(source, name)
    if isinstance(source, bytes):
        return Picture(source, name, max_pixels=max_pixels)
    uri = os.fspath(source)
    try:
        return Picture(read_bytes(uri), uri, max_pixels=max_pixels)
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read ({error.strerror or error})") from error


def find_in(original: Picture, crop: Picture, settings: MatcherSettings = DEFAULTS) -> Match:
    """Finds ``crop`` in ``original``; both keep what they decoded.  Never raises for a bad picture: the verdict is ``unreadable``."""
    match = Match("unreadable")
    try:
        match = replace(match, original_wh=original.size_wh, orientation=original.header.orientation)
        match = replace(match, crop_wh=crop.size_wh)
        return _judge(match, original, crop, settings)
    except UnreadableImage as error:
        return replace(match, reason=str(error))


def _judge(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match:
    """The verdict on two readable pictures; ``blank`` carries their sizes."""
    (ow, oh), (cw, ch) = original.size_wh, crop.size_wh
    lowest = max(s.lowest_scale, s.overlap * max(cw / ow, ch / oh))
    if lowest > s.highest_scale:
        reason = f"The crop ({cw} x {ch} px) is too large for its original ({ow} x {oh} px). Are the two folders swapped?"
        return replace(blank, verdict="no_match", reason=reason)
    if float(crop.search_plane.pixels.std()) < s.blank and float(crop.full().std()) < s.blank:
        return replace(blank, verdict="flat", reason="The crop shows one flat tone: it fits anywhere.")
    found = search(original, crop, lowest, s)
    if found is None or not plausible(found, s):
        if _texture(crop, s) < s.flat_texture:
            return replace(blank, verdict="flat", reason="The crop has too little texture to tell where it lies.")
        return replace(blank, verdict="no_match", reason="No place in the original looks like the crop.")
    elsewhere = rivals(found, crop.size_wh, s)
    for rival in elsewhere.places:
        if rival.merit > found.merit or rival.fit.residual < found.fit.residual:
            found, rival = rival, found
    settled = settle(original, crop, found, s)
    return _answer(blank, crop, settled, elsewhere, s)


def search(original: Picture, crop: Picture, lowest_scale: float, s: MatcherSettings) -> Found | None:
    """The best place any search comes up with, cheap searches first; None if there is not even a bad one."""
    (ow, oh), (cw, ch) = original.size_wh, crop.size_wh
    fits = cw <= ow and ch <= oh
    found: Found | None = None
    if fits:
        candidates = at_same_scale(original.search_plane, crop.search_plane, s.template_px, s.band_px, s.search_peaks)
        found = follow(original, crop, candidates, "shift", "ncc", s)
    if found is None or not convinces(found, s):
        candidates = by_features(
            original.search_plane.resampled(max(original.size_wh) / s.features_long_side_px),
            crop.search_plane.resampled(max(crop.size_wh) / s.features_long_side_px),
            num_features=s.num_features, scale_range=(0.9 * lowest_scale, s.highest_scale), max_angle_deg=s.max_angle_deg, count=2,
        )  # fmt: skip
        found = better(found, follow(original, crop, candidates, "similarity", "features", s))
    if not plausible(found, s):
        candidates = over_scales(
            original.search_plane, crop.search_plane, lowest_scale, s.highest_scale, s.sweep_ratio, s.sweep_template_px, s.band_px,
            s.sweep_peaks,
        )  # fmt: skip
        found = better(found, follow(original, crop, candidates, "scale", "ncc", s))
    faint = max(crop.search_plane.size_wh) < s.small_px or _texture(crop, s) < s.faint_texture
    if fits and faint and not plausible(found, s):
        found = better(found, _at_half_size(original, crop, s))
    return found


def _at_half_size(original: Picture, crop: Picture, s: MatcherSettings) -> Found | None:
    """Correlates everything at half size: brings back plain crops whose only texture is fine."""
    factor = 2 if min(crop.size_wh) >= 64 else 1
    pair = Pair(*(Plane(p.full()).reduced(factor).smoothed(s.smooth_px) for p in (original, crop)), s.band_px)
    scores = correlation_map(*(band_pass(p.pixels, s.band_px) for p in (pair.original, pair.crop)))
    best: Found | None = None
    for x, y, _ in peaks(scores, 2, apart_px=4):
        fit = register(pair, places.shifted(x * factor, y * factor), "shift", iterations=s.iterations)
        best = better(best, Found(fit, compare(pair, fit.place, s), "ncc", pair))
    return best


def _texture(crop: Picture, s: MatcherSettings) -> float:
    """The band-passed standard deviation of the crop's search plane, in grey levels."""
    return float(band_pass(crop.search_plane.smoothed(s.smooth_px).pixels.astype(np.float32, copy=False), s.band_px).std())


def _answer(blank: Match, crop: Picture, settled: Settled, elsewhere: Elsewhere, s: MatcherSettings) -> Match:
    """The verdict on a plausible place that was settled."""
    place, crop_wh, found = settled.place, crop.size_wh, settled.found
    if settled.kept:
        assert blank.original_wh is not None
        x, y = (round(min(max(float(v), 0), o - c)) for v, o, c in zip(place[:, 2], blank.original_wh, crop_wh, strict=True))
        box, angle, scale = Box(float(x), float(y), float(x + crop_wh[0]), float(y + crop_wh[1])), 0.0, 1.0
    else:
        box = Box(*(round(v, 4) for v in places.to_box(place, crop_wh)))
        angle, scale = round(places.angle_deg(place), 5), round(places.scale(place), 6)
    score = found.evidence.score
    match = replace(
        blank, box=box, angle_deg=angle, scale=scale, score=round(score, 6), method=found.method, error_px=round(settled.sigma_px, 4),
        gap=round(score - (elsewhere.score or 0.0), 6),
    )  # fmt: skip
    verdict, reason = _verdict(settled, elsewhere, s)
    return replace(match, verdict=verdict, reason=reason)


def _verdict(settled: Settled, elsewhere: Elsewhere, s: MatcherSettings) -> tuple[str, str | None]:
    found, windows = settled.found, settled.windows
    if windows is not None:
        if settled.moved >= s.burst_share:
            return "no_match", "Parts of the picture have moved: the crop comes from a neighbouring frame, not from this original."
        if settled.moved > 0:
            return "doubtful", "One part of the picture lies elsewhere in the original: edited, or a neighbouring frame."
        if not windows:
            return "doubtful", "The place looks right, but nothing could be compared at full size."
        if len(windows) < s.window_share * settled.tried and not convinces(found, s):
            return "doubtful", "At full size only a few parts of the crop agree with the original."
    if any(residual_ratio(found, rival) < s.rival_ratio for rival in elsewhere.places):
        return "ambiguous", "The crop fits equally well in more than one place."
    if not convinces(found, s) and found.evidence.tiles < s.sure_tiles:
        return "doubtful", "One place fits, but too little of the crop has texture to be sure."
    return "found", None
