"""Follow: from a candidate to a registered, verified place, at a resolution where the crop is large enough to be judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import numpy as np

from cropreg.matching import place as places
from cropreg.matching.local import Displacements, displacements
from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine
from cropreg.matching.plane import Pair, Plane
from cropreg.matching.register import COARSE_ITERATIONS, Fit, coarse_to_fine, register
from cropreg.matching.search import Candidate
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.verify import Evidence, verify

SAME_PLACE = 0.02  # of the crop's long side: what lies nearer is the same place, looked at closer
KEPT_PAIRS = 4  # levels of one scale
LEAST_WHOLE_PX = 16  # plane px; short side below which a crop fits anywhere in a whole original, or nowhere but on its own grid
MOST_WHOLE_PX = 3_000_000  # plane px of the whole original then: a correlation takes 40 bytes and 80 ns of each
DIRECT_RATIO = 4.0  # of pixels, over which the peak of a clear shift, told to a tenth of one, is near enough for the finest level
SAME_STEP = 0.02  # relative difference of two resolutions up to which the mean of a square is that of the same square


@dataclass(frozen=True)
class Found:
    """A candidate after registration: where, how it was found, what a comparison saw there, and the planes it was seen on."""

    fit: Fit
    evidence: Evidence
    method: str
    pair: Pair

    @property
    def place(self) -> Affine:
        """The registered place."""
        return self.fit.place

    @property
    def is_shift(self) -> bool:
        """Whether the place is that of a crop that was only cut out."""
        return bool(np.abs(self.place[:, :2] - np.eye(2)).max() < 1e-6)

    def displacements(self, s: MatcherSettings) -> list[Displacements]:
        """By how much small and larger tiles would still like to move; measured once."""
        tiles_px = s.motion_tile_px, s.motion_tile_px * 3 // 2
        if tiles_px not in self._displacements:
            self._displacements[tiles_px] = displacements(self.pair, self.place, tiles_px)
        return self._displacements[tiles_px]

    @cached_property
    def _displacements(self) -> dict[tuple[int, int], list[Displacements]]:
        return {}

    @property
    def merit(self) -> float:
        """Orders candidates: how well the tiles agree, less if there are few."""
        e = self.evidence
        return min(e.median, e.band) * min(1.0, (e.tiles + 1) / 5) * e.inside * (1.0 if self.fit.converged else 0.5)


def better(a: Found | None, b: Found | None) -> Found | None:
    """The one with more merit, the first if equal; None only if both are."""
    if a is None or b is None:
        return a or b
    return b if b.merit > a.merit else a


def convinces(found: Found, s: MatcherSettings) -> bool:
    """Whether there is no need to look further."""
    e = found.evidence
    alike = e.median >= s.sure_median and e.low >= s.sure_low and e.tiles >= s.sure_tiles
    return alike and found.fit.converged and e.inside > s.least_inside


def plausible(found: Found | None, s: MatcherSettings) -> bool:
    """Whether this may be the place, so that only its exactness and uniqueness remain to be seen."""
    if found is None:
        return False
    e = found.evidence
    most = e.median >= s.sure_median and e.tiles >= s.even_tiles  # a title in large letters outweighs all the rest
    alike = most or (e.median >= s.fair_median and e.low >= s.fair_low and e.band >= s.fair_band and e.tiles >= s.fair_tiles)
    return (alike or as_a_whole(found, s)) and found.fit.converged and e.inside > s.least_inside


def passes(found: Found, s: MatcherSettings) -> bool:
    """Whether the best place after every search is worth settling: :func:`plausible`, or many tiles agree about equally well."""
    e = found.evidence
    even = e.median >= s.even_median and e.low >= s.even_low and e.band >= s.fair_band and e.tiles >= s.even_tiles
    return plausible(found, s) or (even and found.fit.converged and e.inside > s.least_inside)


def as_a_whole(found: Found, s: MatcherSettings) -> bool:
    """Whether the pictures agree though their tiles do not: dark ones, whose tiles hold little but JPEG's own noise."""
    return found.evidence.band >= s.whole_band and found.evidence.score >= s.whole_score


def paired(original: Picture, crop: Picture, step: float, scale: float, s: MatcherSettings) -> Pair:
    """The planes of two pictures at ``step`` original pixels per pixel, under a scale; of large crops band-passed before."""
    planes = original.smooth(step, s.smooth_px), crop.smooth(step * scale, s.smooth_px)
    kept = scale == 1.0
    alike = planes[0].step_xy == planes[1].step_xy if kept else abs(planes[1].step / (planes[0].step * scale) - 1) < SAME_STEP
    if alike and _is_large(planes[1], s):
        bands = original.band(step, s.smooth_px, s.band_px), crop.band(step * scale, s.smooth_px, s.band_px)
        return Pair.banded(*planes, *bands, s.band_px, mirrored=kept)
    return Pair(*planes, s.band_px, mirrored=kept)


def whole_step(original: Picture, crop: Picture, scale: float) -> float:
    """Original pixels per pixel at which a crop is held against all of its original, under a scale.

    Those of the search; for a tiny crop, of which these show nothing, halved as often as needed, if full pixels are at hand, but
    not so often that the original has more than ``MOST_WHOLE_PX`` of them.
    """
    step = max(original.search_plane.step, crop.finest_step / scale)
    finest = max(original.finest_step, crop.finest_step / scale, math.sqrt(math.prod(original.size_wh) / MOST_WHOLE_PX))
    halvings = max(0, math.ceil(math.log2(LEAST_WHOLE_PX * scale * step / min(crop.size_wh))))
    return max(step / 2**halvings, min(step, finest))


def _is_large(crop: Plane, s: MatcherSettings) -> bool:
    """Whether enough of a crop is left without its border."""
    return min(crop.size_wh) >= 4 * s.band_px


def _paired_at(original: Picture, crop: Picture, s: MatcherSettings, step: float, scale: float, level: int) -> Pair:
    """The pair a candidate is followed on: coarse ones lose more of what is slow, for a vignette is all they would show of a clear sky."""
    pair = paired(original, crop, step * 2.0**level, scale, s)
    if level == 0 or pair.bands:
        return pair
    return replace(pair, band_px=min(s.band_px, max(s.coarse_band_px, max(pair.crop.size_wh) // 8 | 1)))


def _levels(ratio: float, model: str, *, clear: bool) -> Sequence[int]:
    """The levels, coarsest first, by which a candidate found on pixels ``ratio`` times as large is followed down to level 0.

    Each halves the pixels; a shift, which starts within a third of a pixel, may leave every other one out, and a ``clear`` one all of
    them where they are few: most of those end where they should, after a step more.
    """
    if clear and model == "shift" and ratio <= DIRECT_RATIO:
        return range(1)
    top = max(0, math.ceil(math.log2(max(1.0, ratio)) - 0.2) - (model == "shift"))
    if model == "shift" and top > 1:
        return range(top - top % 2, -1, -2)
    return range(top, -1, -1)


def follow(
    original: Picture,
    crop: Picture,
    candidates: list[Candidate],
    model: str,
    method: str,
    s: MatcherSettings,
    but: Sequence[Affine] = (),
) -> Found | None:
    """Registers and verifies candidates until one convinces; the best of them that does not lie at one of the places ``but``.

    Each starts at about the resolution it was found at, where a step is cheap, and is dropped as soon as the pictures do not look alike.
    The first few are judged before the others are followed at all.
    """
    best: Found | None = None
    seen: list[Affine] = []
    pair_at = lru_cache(maxsize=KEPT_PAIRS)(partial(_paired_at, original, crop, s))
    for batch in (candidates[: s.first_followed], candidates[s.first_followed :]):
        small: list[Found] = []
        for candidate in batch:
            found = _registered(original, crop, candidate, pair_at, seen, model, method, s)
            if found is None or _is_at(found, but, crop.size_wh):
                continue
            if found.pair.step > 1.5 and _is_small(found, model, s):
                small.append(found)
                continue
            best = better(best, found)
            if convinces(found, s):
                return best
        # Too small to be judged: the most promising are looked at again, at more resolution.
        for found in sorted(small, key=lambda f: -f.merit)[: s.most_closer]:
            nearer = closer(original, crop, found, s)
            if nearer is None or _is_at(nearer, but, crop.size_wh):
                continue
            best = better(best, nearer)
            if convinces(nearer, s):
                return best
    return best


def by_tone(
    original: Picture, crop: Picture, candidates: Sequence[Candidate], model: str, s: MatcherSettings, but: Sequence[Affine] = ()
) -> Found | None:
    """A plausible place of a crop that was turned and has few corners, as a ridge before an evening sky; None without one.

    Plain tones are registered at first: the band-pass leaves nothing of a smooth picture that would lead there from more than a few
    pixels off, and slopes of tone lead there from afar.  They lead anywhere as well, if there are few: with the model "turn" what is
    found must have kept its scale, with any other it must convince.
    """
    seen: list[Affine] = []
    for candidate in candidates:
        scale = 1.0 if model == "turn" else places.scale(candidate.place)
        step = max(original.search_plane.step, crop.finest_step / scale)
        place = _led_by_tones(original, crop, candidate.place, step, scale, model, seen, s)
        if place is None:
            continue
        pair = paired(original, crop, step, places.scale(place), s)
        fit = register(pair, place, "similarity", iterations=s.iterations, least_ncc=s.fair_band)
        found = Found(fit, compare(pair, fit.place, s), "ncc", pair)
        right = abs(places.scale(fit.place) - 1) < s.most_kept_scale if model == "turn" else convinces(found, s)
        if right and plausible(found, s) and not _is_at(found, but, crop.size_wh):
            return found
    return None


def _led_by_tones(
    original: Picture, crop: Picture, place: Affine, step: float, scale: float, model: str, seen: list[Affine], s: MatcherSettings
) -> Affine | None:
    """Where the slopes of tone lead; None if the crop is too small for them, if they do not agree, or if they led there before."""
    if max(crop.size_wh) < s.tone_px * scale * step:
        return None
    for level, iterations in ((1, s.tone_iterations), (0, COARSE_ITERATIONS)):
        planes = original.smooth(step * 2**level, s.smooth_px), crop.smooth(step * scale * 2**level, s.smooth_px)
        fit = register(
            Pair(*planes, 0), place, model, iterations=iterations, robust=False, tolerance_px=0.1,
            least_ncc=0.0 if level else s.tone_ncc,
        )  # fmt: skip
        place = fit.place
        if fit.ncc < s.tone_ncc or (level and any(places.distance_px(place, known, crop.size_wh) < 4 * step for known in seen)):
            return None
        if level:
            seen.append(place)
    return place


def _is_at(found: Found, known: Sequence[Affine], crop_wh: tuple[int, int]) -> bool:
    """Whether it lies at one of some places that were looked at closer, by which they may have moved a little."""
    return any(
        places.distance_px(found.place, place, crop_wh) < SAME_PLACE * max(crop_wh) / places.scale(place) + found.pair.step
        for place in known
    )


def _registered(
    original: Picture,
    crop: Picture,
    candidate: Candidate,
    pair_at: Callable[[float, float, int], Pair],
    seen: list[Affine],
    model: str,
    method: str,
    s: MatcherSettings,
) -> Found | None:
    """A candidate registered at about the resolution it was found at; None if the pictures do not look alike there.

    None, too, if it led to a place in ``seen``, to which new ones are added.
    """
    scale = 1.0 if model == "shift" else places.scale(candidate.place)
    step = max(original.search_plane.step, crop.finest_step / scale)
    levels = _levels(candidate.step / step, model, clear=candidate.ncc >= s.clear_ncc)
    least_ncc = s.shift_ncc if model == "shift" and len(levels) > 1 else s.least_ncc
    fit = coarse_to_fine(
        partial(pair_at, step, scale), levels, candidate.place, model, iterations=s.iterations, least_ncc=least_ncc
    )
    if (
        model == "shift"
        and candidate.ncc >= s.peak_ncc
        and places.distance_px(fit.place, candidate.place, crop.size_wh) > 2 * candidate.step
    ):
        at_peak = register(pair_at(step, scale, 0), candidate.place, model, iterations=1, robust=False)
        if at_peak.ncc > fit.ncc:  # on few pixels it has slid along an edge
            fit = replace(at_peak, place=candidate.place)
    if fit.ncc < s.least_ncc or any(places.distance_px(fit.place, known, crop.size_wh) < step for known in seen):
        return None
    seen.append(fit.place)
    pair = pair_at(step, scale, 0)
    return Found(fit, compare(pair, fit.place, s), method, pair)


def _is_small(found: Found, model: str, s: MatcherSettings) -> bool:
    """Whether a promising place was seen on too few pixels to be judged."""
    judged = model == "shift" and found.evidence.tiles >= s.many_tiles and convinces(found, s)
    promising = min(found.evidence.median, found.evidence.band) > s.closer_ncc
    return max(found.pair.crop.size_wh) < s.small_px and promising and not judged


def closer(original: Picture, crop: Picture, found: Found, s: MatcherSettings, *, long_side_px: int | None = None) -> Found | None:
    """Looks again at more resolution, on the part of the original around a place, where the planes were too small to judge.

    A shift stands unless a similarity fits clearly better; None if the pictures do not look alike any more.
    Cost: the full decode of both pictures.
    """
    scale = places.scale(found.place)
    finest = max(1.0, 1 / scale)  # original pixels per pixel of the coarser picture
    wanted = max(finest, max(crop.size_wh) / scale / (long_side_px or s.closer_px))
    levels = range(max(1, math.ceil(math.log2(max(1.0, found.pair.step / wanted)))) - 1, -1, -1)
    part = around(Plane(original.full()), found.place, crop.size_wh, 3 * found.pair.step)
    whole = Plane(crop.full())
    pairs: dict[int, Pair] = {}

    def pair_at(level: int) -> Pair:
        if level not in pairs:
            step = wanted * 2.0**level
            planes = part.resampled(step).smoothed(s.smooth_px), whole.resampled(step * scale).smoothed(s.smooth_px)
            pairs[level] = Pair(*planes, s.band_px, mirrored=found.is_shift)
            if not found.is_shift and _is_large(planes[1], s):
                bands = planes[0].band_passed(s.band_px), planes[1].band_passed(s.band_px)
                pairs[level] = Pair.banded(*planes, *bands, s.band_px, mirrored=False)
        return pairs[level]

    best: Fit | None = None
    turned = "free" if found.fit.model == "free" else "similarity"
    for model, least_ncc in (("shift", s.least_ncc), (turned, s.closer_ncc)):
        if model == "shift" and not found.is_shift:
            continue
        iterations = s.iterations // 2 if model == "shift" else s.iterations  # one that takes longer is not there
        fit = coarse_to_fine(pair_at, levels, found.place, model, iterations=iterations, least_ncc=least_ncc)
        if fit.ncc < least_ncc:
            return None
        if best is None or fit.ncc > best.ncc + 0.003:
            best = fit
        if best.ncc >= s.sure_median:  # whether that is all is asked of what was found, see settle
            break
    assert best is not None
    return Found(best, compare(pair_at(0), best.place, s), found.method, pair_at(0))


def around(original: Plane, place: Affine, crop_wh: tuple[int, int], margin_px: float) -> Plane:
    """The part of a plane that a place covers, and a margin in plane pixels."""
    w, h = crop_wh
    corners = (places.apply(place, np.array([[0, 0], [w, 0], [0, h], [w, h]], np.float64)) - original.shift_xy) / original.step_xy
    low = np.clip(np.floor(corners.min(0) - margin_px), 0, np.array(original.size_wh) - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0) + margin_px), low + 1, np.array(original.size_wh)).astype(int)
    return original.window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def compare(pair: Pair, place: Affine, s: MatcherSettings) -> Evidence:
    """:func:`verify` with the settings' tiles."""
    return verify(pair, place, most_tiles=s.most_tiles, least_tile_px=s.least_tile_px, noise=s.noise, weak=s.weak)


def refit(found: Found, start: Affine, model: str, s: MatcherSettings) -> Found:
    """Registers again on the same planes with another model."""
    fit = register(found.pair, start, model, iterations=s.iterations)
    return replace(found, fit=fit, evidence=compare(found.pair, fit.place, s))
