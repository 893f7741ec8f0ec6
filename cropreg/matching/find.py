"""Find: the order of the stages, cheap ones first, and the verdict.

Header (impossible pairs cost nothing) -> both pictures at 1/8 -> correlation at the same scale -> features -> slopes of tone -> a sweep
of scales -> correlation at half size -> uniqueness -> full-size windows where the predicted error or the displacements of tiles ask for
them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box
from cropreg.errors import UnreadableImage
from cropreg.matching import place as places
from cropreg.matching.border import foreign_sides, own_lines
from cropreg.matching.features import by_features
from cropreg.matching.follow import Found, around, better, by_tone, compare, convinces, follow, passes, plausible
from cropreg.matching.frame import Inner, beside_bars, fades_away, inside_frame, is_margin, margins_of, without
from cropreg.matching.grain import anywhere, averaged, by_grain, same_grain
from cropreg.matching.judge import answer
from cropreg.matching.kept import kept_or_free
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine
from cropreg.matching.plane import Pair, Plane, band_pass, deviation
from cropreg.matching.register import register
from cropreg.matching.repeats import repeats_closely, same_exposure
from cropreg.matching.rivals import Elsewhere, rivals, tell_apart
from cropreg.matching.search import Candidate, at_same_scale, bands_map, over_scales, peaks, standing_out
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.settle import Settled, settle
from cropreg.storage import read_bytes

__all__ = ["Match", "MatcherSettings", "Picture", "find", "find_in"]

Source = str | os.PathLike[str] | bytes | NDArray[np.uint8]
FINER_PX = 750_000  # pixels at which originals are correlated whole, for a template of fine texture: it takes 40 bytes a pixel
TURNED = {1: "by 90 degrees clockwise", 2: "upside down", 3: "by 90 degrees anticlockwise"}
"""By how many quarters anticlockwise a crop is turned back, and how it lies before."""
BORDERED = "The crop's border shows something else than the original: a frame, a caption, or edited."
UNSEEN = "The crop's border is as even as its original there: at which sides it is a frame cannot be told."
MOST_TRIMMED = 4  # borders taken from round a crop: three frames, and a caption inside
BORDER_SHARE = 0.9  # of a crop's width, which planes show that show its border
LEAST_INNER_PX = 24  # sides of what is left of a crop without what was laid round it
DEFAULTS = MatcherSettings()


def find(original: Source, crop: Source, settings: MatcherSettings | None = None) -> Match:
    """Finds where ``crop`` was cut from ``original``: each a path, a URI, the bytes of a file, or uint8 pixels (grey or RGB).

    Never raises for a bad picture: the verdict says ``unreadable`` and the reason names it.
    """
    settings = settings or DEFAULTS
    try:
        whole, part = _picture(original, "original", settings.max_pixels), _picture(crop, "crop", settings.max_pixels)
    except UnreadableImage as error:
        return Match("unreadable", str(error))
    return find_in(whole, part, settings)


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
        crop.is_large = all(o <= 2 * c <= 2 * o for c, o in zip(crop.size_wh, original.size_wh, strict=True))
        return _judge(match, original.for_crop(crop.size_wh), crop, settings)
    except UnreadableImage as error:
        return replace(match, reason=str(error))


def _judge(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match:
    """The verdict on two readable pictures; ``blank`` carries their sizes."""
    match = _as_it_is(blank, original, crop, s)
    refused = match.verdict in ("doubtful", "no_match") and match.reason != UNSEEN
    return (refused and _beside_bars(blank, original, crop, s)) or match


def _as_it_is(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match:
    """The verdict on a crop of which nothing is left out but an even border."""
    (ow, oh), (cw, ch) = original.size_wh, crop.size_wh
    lowest = _lowest_scale(original, crop, s)
    if lowest > s.highest_scale:
        reason = f"The crop ({cw} x {ch} px) is too large for its original ({ow} x {oh} px). Are the two folders swapped?"
        return replace(blank, verdict="no_match", reason=reason)
    if deviation(crop.search_plane.pixels) < s.blank and deviation(crop.full()) < s.blank:
        return replace(blank, verdict="flat", reason="The crop shows one flat tone: it fits anywhere.")
    found = search(original, crop, lowest, s)
    there = found is not None and passes(found, s)
    # An even border is a frame where the original shows something else.
    if found is None or not there or not is_margin(original.search_plane, crop.search_plane, found.place):
        framed = _inside_frame(blank, original, crop, s)
        if framed is not None:
            return framed
    by_grain_alone = cache(partial(_by_grain, blank, original, crop, s))
    if found is None or not there:
        return _not_found(blank, original, crop, by_grain_alone, s)
    match, certain, left_over = _settled(blank, original, crop, found, by_grain_alone, s)
    mirages = [found.place]
    while not certain and len(mirages) <= s.most_mirages:
        found = search(original, crop, lowest, s, mirages)
        if found is None or not passes(found, s):
            break
        again, certain, left_again = _settled(blank, original, crop, found, by_grain_alone, s)
        if again.verdict == "found" and (left_over is None or left_again is None or left_again <= left_over):
            return again
        mirages.append(found.place)
    return match


def _lowest_scale(original: Picture, crop: Picture, s: MatcherSettings) -> float:
    """The scale, in crop pixels per original pixel, below which the crop would be larger than its original."""
    return max(s.lowest_scale, s.overlap * max(c / o for c, o in zip(crop.size_wh, original.size_wh, strict=True)))


def _settled(
    blank: Match, original: Picture, crop: Picture, found: Found, by_grain_alone: Callable[[], Match | None], s: MatcherSettings
) -> tuple[Match, bool, float | None]:
    """The verdict on the place that was found, whether there is no need to look for another one, and what it leaves unexplained."""
    # First of all, for as a mere shift a crop turned by little fits elsewhere about as well.
    found, kept = kept_or_free(original, crop, found, s)
    elsewhere = rivals(original, crop, found, s)
    best, tied = tell_apart(original, crop, found, elsewhere.places, s)
    if best is not found:
        first, (found, kept) = found, kept_or_free(original, crop, best, s)
        if tied:  # perhaps only because it had the scale and turn of the first one
            near_px = original.search_plane.step
            others = [p for p in (first.place, *elsewhere.places) if places.distance_px(p, best.place, crop.size_wh) > near_px]
            again, tied = tell_apart(original, crop, found, others, s)
            tied = tied or again is not found
    alone = tied or elsewhere.score is None or found.evidence.score - elsewhere.score >= s.alone_gap
    settled = settle(original, crop, found, kept, s, alone=alone, repeats=bool(elsewhere.places))
    tied = tied or repeats_closely(original, crop, settled, s)
    if tied and settled.doubted:  # each repeat was coded by itself
        settled = replace(settled, unexplained=None)
    match = answer(blank, crop.size_wh, settled, elsewhere, tied, s)
    if kept and not settled.moved:
        faint = match.verdict == "doubtful" and _texture(crop, s) < s.faint_texture
        alike = match.verdict != "found" and (tied or elsewhere.places)
        asked = faint or alike or settled.error_px > s.scattered_px
        proven = by_grain_alone() if asked else None
        if proven is not None and (faint or same_exposure(original, crop, found, proven, s)):
            return proven, True, None
    if match.verdict == "found":
        match = _inside_border(blank, original, crop, settled, match, s)
    # A crop as it was cut that lies in two places has no third one.
    certain = match.verdict == "found" or (kept and match.verdict == "ambiguous")
    return match, certain or not settled.may_be_mirage(s), settled.unexplained


def _inside_border(blank: Match, original: Picture, crop: Picture, settled: Settled, match: Match, s: MatcherSettings) -> Match:
    """The match as it is; a doubtful one where the crop's outermost lines show something else, with the box of the picture inside."""
    pair, evidence = settled.found.pair, settled.found.evidence
    if pair.crop.size_wh[0] * pair.crop.step_xy[0] < BORDER_SHARE * crop.size_wh[0]:  # the middle of a sky, found by its grain
        pair = replace(pair, original=original.search_plane, crop=crop.search_plane)
    sides = foreign_sides(pair.original, pair.crop, settled.place, evidence)
    if not any(sides):
        return match
    unsure = replace(match, verdict="doubtful", reason=BORDERED, probability=_halved(match.probability))
    trimmed = [math.ceil((n + 1) * step) if n else 0 for n, step in zip(sides, 2 * pair.crop.step_xy, strict=True)]
    left, top, right, bottom = trimmed
    least = min(crop.size_wh[0] - left - right, crop.size_wh[1] - top - bottom)
    if least < LEAST_INNER_PX or crop.num_trimmed >= MOST_TRIMMED:
        return unsure
    inner = without(crop, (left, top, right, bottom))
    found = _judge(blank, original, inner, s)
    place = _place_of(found, inner)
    outer = None if place is None else places.compose(place, places.shifted(-left, -top))
    if place is None or outer is None or places.distance_px(outer, settled.place, crop.size_wh) > pair.step:
        return unsure
    whole, part = Plane(original.full()).resampled(1 / places.scale(place)), Plane(crop.full())
    own = [own_lines(whole, part, outer, side, n, evidence) for side, n in enumerate(trimmed)]
    if own == trimmed:
        return match
    return replace(unsure, box=_widened(place, inner.size_wh, own), scale=found.scale, angle_deg=found.angle_deg)


def _halved(probability: float | None) -> float:
    return round((probability or 0.0) / 2, 4)


def _place_of(match: Match, crop: Picture) -> Affine | None:
    """The place of a crop that was found; None if it was not, or nothing but a picture inside its frame."""
    if match.verdict != "found" or match.box is None or match.scale is None or match.angle_deg is None:
        return None
    whole = abs(math.sqrt(math.prod(match.box.size_wh)) * match.scale - math.sqrt(math.prod(crop.size_wh))) < 1.0
    return places.from_box(match.box, crop.size_wh, match.angle_deg) if whole else None


def _widened(place: Affine, crop_wh: tuple[int, int], more: Sequence[int]) -> Box:
    """The box of a crop at its place with so many lines more at its left, top, right and bottom."""
    left, top, right, bottom = more
    wider = places.compose(place, places.shifted(-left, -top))
    return Box(*(round(v, 4) for v in places.to_box(wider, (crop_wh[0] + left + right, crop_wh[1] + top + bottom))))


def _inside_frame(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match | None:
    """The match of the picture inside a border that a person laid round the crop; None without border, or if that is nowhere."""
    if crop.num_trimmed >= MOST_TRIMMED or _texture(crop, s) < s.flat_texture:
        return None
    inner = inside_frame(crop)
    return None if inner is None or fades_away(crop, inner) else _match_inside(blank, original, crop, inner, s)


def _beside_bars(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match | None:
    """The match of the picture beside bars of paper, doubtful for them; None without any, or if that is not found."""
    inner = beside_bars(crop) if crop.num_trimmed < MOST_TRIMMED else None
    match = None if inner is None else _match_inside(blank, original, crop, inner, s)
    if match is None or match.verdict != "found":
        return None
    return replace(match, verdict="doubtful", reason=BORDERED, probability=_halved(match.probability))


def _match_inside(blank: Match, original: Picture, crop: Picture, inner: Inner, s: MatcherSettings) -> Match | None:
    """The match of an inner picture, with what of its border is the original's; None if it is nowhere."""
    match = _judge(blank, original, inner.picture, s)
    if match.verdict not in ("found", "doubtful"):
        return None
    place = _place_of(match, inner.picture)
    if place is None:
        return match
    left, top, _, _ = (n + more for n, more in zip(inner.sides, inner.trimmed, strict=True))
    own, sure = margins_of(inner, original.full(), crop.full(), places.compose(place, places.shifted(-left, -top)))
    match = replace(match, box=_widened(place, inner.picture.size_wh, own))
    return match if sure else replace(match, verdict="doubtful", reason=UNSEEN, probability=_halved(match.probability))


def _not_found(
    blank: Match, original: Picture, crop: Picture, by_grain_alone: Callable[[], Match | None], s: MatcherSettings
) -> Match:
    """Why nothing was found: too little texture, a mirrored crop, one turned by quarters, or another picture."""
    if _texture(crop, s) < s.flat_texture:
        flat = replace(blank, verdict="flat", reason="The crop has too little texture to tell where it lies.")
        return by_grain_alone() or flat
    seen = _seen_as(blank, original, crop.mirrored(), "The crop is mirrored: left and right are exchanged.", s)
    if seen is None and (quarters := _quarters(original, crop, s)):
        seen = _seen_as(blank, original, crop.turned(quarters), f"The crop is turned {TURNED[quarters]} against its original.", s)
    if seen is not None:
        return seen
    return replace(blank, verdict="no_match", reason="No place in the original looks like the crop.")


def _seen_as(blank: Match, original: Picture, twin: Picture, reason: str, s: MatcherSettings) -> Match | None:
    """The match of a crop that is mirrored or turned, doubtful for that ``reason``; None if it is not found so."""
    lowest = _lowest_scale(original, twin, s)
    found = quick_search(original, twin, lowest, s) if lowest <= s.highest_scale else None
    if found is None or not convinces(found, s):
        return None
    settled = settle(original, twin, *kept_or_free(original, twin, found, s), s)
    match = answer(blank, twin.size_wh, settled, Elsewhere(None, []), False, s)
    return replace(match, verdict="doubtful", reason=reason) if match.verdict == "found" else None


def _quarters(original: Picture, crop: Picture, s: MatcherSettings) -> int:
    """By how many quarters, anticlockwise, most corners of the crop must be turned to look like the original's; 0 if they need not."""
    told = by_features(
        original.keypoints(s.features_long_side_px, s.num_features), crop.keypoints(s.features_long_side_px, s.num_features),
        scale_range=(s.lowest_scale, s.highest_scale), max_angle_deg=180.0, count=1,
    )  # fmt: skip
    return round(-places.angle_deg(told[0].place) / 90) % 4 if told else 0


def _by_grain(blank: Match, original: Picture, crop: Picture, s: MatcherSettings) -> Match | None:
    """The match of a plain crop whose grain is the original's, everywhere in it and in one place alone; None if it is not."""
    whole, part = Plane(original.full()), Plane(crop.full())
    place = anywhere(whole, part, s)
    if place is None or (place := same_grain(whole, part, place, s)) is None:
        return None
    (w, h), side = crop.size_wh, s.closer_px // 2
    middle = part.window(max(0, w // 2 - side), max(0, h // 2 - side), w // 2 + side, h // 2 + side)
    pair = Pair(around(whole, places.compose(place, middle.to_full), middle.size_wh, 4.0), middle, s.band_px)
    fit = replace(register(pair, place, "shift", iterations=1, robust=False), place=place)
    found = Found(fit, compare(pair, place, s), "ncc", pair)
    settled = Settled(found, place, kept=True, error_px=0.0, same_grain=True)
    return answer(blank, crop.size_wh, settled, rivals(original, crop, found, s), False, s)


def quick_search(
    original: Picture, crop: Picture, lowest_scale: float, s: MatcherSettings, but: Sequence[Affine] = ()
) -> Found | None:
    """The best place at the same scale, or by features if that does not convince; the places ``but`` are left out."""
    found: Found | None = None
    likely: list[Candidate] = []
    others: list[Candidate] = []
    if all(c <= o for c, o in zip(crop.size_wh, original.size_wh, strict=True)):
        candidates = at_same_scale(crop.maps_in(original, s.template_px, s.band_px), s.search_peaks)
        # The place of a crop that was only cut out is the first peak, or next to it; lower ones wait until features have failed.
        likely = [c for c in candidates if c.ncc >= max(s.clear_ncc, candidates[0].ncc - s.close_ncc)] or candidates[:1]
        others = candidates[len(likely) :]
        found = follow(original, crop, likely, "shift", "ncc", s, but)
    if found is None or not convinces(found, s):
        candidates = by_features(
            original.keypoints(s.features_long_side_px, s.num_features), crop.keypoints(s.features_long_side_px, s.num_features),
            scale_range=(0.9 * lowest_scale, s.highest_scale), max_angle_deg=s.max_angle_deg, count=2,
        )  # fmt: skip
        found = better(found, follow(original, crop, candidates, "similarity", "features", s, but))
    if not plausible(found, s):  # turned or resized by little, and without corners: the peak is near the place, but no shift fits
        found = better(found, follow(original, crop, likely[:2], "similarity", "ncc", s, but))
    if not plausible(found, s):
        found = better(found, follow(original, crop, others, "shift", "ncc", s, but))
    return found


def search(original: Picture, crop: Picture, lowest_scale: float, s: MatcherSettings, but: Sequence[Affine] = ()) -> Found | None:
    """The best place any search comes up with, cheap searches first; None if there is not even a bad one beside ``but``."""
    (ow, oh), (cw, ch) = original.size_wh, crop.size_wh
    found = quick_search(original, crop, lowest_scale, s, but)
    fits_inside = cw <= ow and ch <= oh
    if fits_inside and not plausible(found, s):
        candidates = at_same_scale(crop.maps_in(original, s.template_px, s.band_px), s.search_peaks)
        found = by_tone(original, crop, candidates[:2], "turn", s, but) or found
    if plausible(found, s):
        return found
    if fits_inside:
        planes = original.search_plane, crop.search_plane
        found = better(
            found,
            follow(original, crop, standing_out(*planes, s.finer_template_px, s.band_px, s.alone_share), "shift", "ncc", s, but),
        )
        if plausible(found, s):
            return found
    faint = _texture(crop, s) < s.faint_texture
    finer = fits_inside and (faint or max(crop.size_wh) < max(s.small_px, s.tiny_px * original.search_plane.step))
    if finer and faint:  # a sky: hardly anybody resizes those
        found = _finer(original, crop, found, s)
    swept: list[Candidate] = []
    for lowest, highest in ((lowest_scale, s.enlarged_scale), (max(lowest_scale, s.enlarged_scale), s.highest_scale)):
        if lowest < highest and not plausible(found, s):
            candidates = over_scales(
                original.search_plane, crop.search_plane, lowest, highest, ratio=s.sweep_ratio, template_px=s.sweep_template_px,
                band_px=s.sweep_band_px, count=s.sweep_peaks, least_ncc=s.least_ncc,
            )  # fmt: skip
            found = better(found, follow(original, crop, candidates, "scale", "ncc", s, but))
            swept += candidates[:2]
    if not plausible(found, s):
        found = by_tone(original, crop, swept, "similarity", s, but) or found
    if finer and not faint and not plausible(found, s):
        found = _finer(original, crop, found, s)
    return found


def _finer(original: Picture, crop: Picture, found: Found | None, s: MatcherSettings) -> Found | None:
    """What the search found, or what more resolution does."""
    half = _at_half_size(original, crop, s)
    return half if plausible(half, s) else better(found, half)  # one that shows no tiles has no merit


def _at_half_size(original: Picture, crop: Picture, s: MatcherSettings) -> Found | None:
    """Correlates everything at half size or, for the sake of memory, less: brings back plain crops whose only texture is fine."""
    num_px = original.size_wh[0] * original.size_wh[1]
    factor = 1 if min(crop.size_wh) < 64 else max(2, round(math.sqrt(num_px / FINER_PX)))
    whole, part = (averaged(Plane(p.full()), factor) for p in (original, crop))
    pair = Pair(whole.smoothed(s.smooth_px), part.smoothed(s.smooth_px), s.band_px)
    scores = bands_map(*(band_pass(plane.pixels, s.band_px) for plane in (pair.original, pair.crop)))
    best: Found | None = None
    for x, y, _ in peaks(scores, 2, apart_px=4):
        fit = register(pair, places.shifted(x * factor, y * factor), "shift", iterations=s.iterations)
        best = better(best, Found(fit, compare(pair, fit.place, s), "ncc", pair))
    if best is not None and plausible(best, s) and best.evidence.tiles >= s.sure_tiles:
        return best
    return better(best, by_grain(original, crop, whole, part, s))


def _texture(crop: Picture, s: MatcherSettings) -> float:
    """The band-passed standard deviation of the crop's search plane, in grey levels."""
    return deviation(band_pass(crop.search_plane.smoothed(s.smooth_px).pixels, s.band_px))
