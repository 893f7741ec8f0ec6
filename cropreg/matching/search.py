"""Search: where might the crop lie?  Coarse correlation at one scale or many; every answer is only a candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, shifted, without_shear
from cropreg.matching.plane import Plane, band_pass, band_pass_part, deviation, from_between

LEAST_DEVIATION = 0.02  # grey levels; what deviates less is even
LEAST_STANDING_OUT = 0.1  # correlation; skies that were found so have 0.1 to 0.6, the best place in another picture mostly less
SHORT_SIDE_PX = 12  # of templates in the sweep of scales: those of strips are longer for it
MOST_WIDENED = 2.0  # by how much the steps of the sweep of scales may be widened for small templates


@dataclass(frozen=True)
class Candidate:
    """A place worth a closer look: the correlation that drew attention to it, and at how many original pixels per pixel."""

    place: Affine
    ncc: float
    step: float


def correlation_map(original: NDArray[np.float32], template: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero-mean NCC of the template at every place (H - h + 1, W - w + 1).

    ``matchTemplate`` gives flat templates 1.0 everywhere and swaps its inputs when the template is larger: both are refused here.
    """
    assert template.shape[0] <= original.shape[0] and template.shape[1] <= original.shape[1]
    if deviation(template) < 1e-3:
        return np.zeros((original.shape[0] - template.shape[0] + 1, original.shape[1] - template.shape[1] + 1), np.float32)
    scores = cv2.matchTemplate(original, template, cv2.TM_CCOEFF_NORMED)
    scores[~np.isfinite(scores) | (np.abs(scores) > 1.001)] = 0.0  # windows without variance
    return scores


def bands_map(original: NDArray[np.float32], template: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`correlation_map` of band-passed pictures: half the cost where they are large, since windows of them have hardly a mean."""
    assert template.shape[0] <= original.shape[0] and template.shape[1] <= original.shape[1]
    h, w = template.shape
    template = template - np.float32(cv2.mean(template)[0])
    scores = cv2.matchTemplate(original, template, cv2.TM_CCORR)
    squares = cv2.sqrBoxFilter(original, cv2.CV_32F, (w, h), normalize=False)
    squares = squares[h // 2 : h // 2 + scores.shape[0], w // 2 : w // 2 + scores.shape[1]]
    squares = np.maximum(squares, np.float32(LEAST_DEVIATION**2 * template.size), dtype=np.float32)
    cv2.sqrt(squares, dst=squares)
    length = max(float(cv2.norm(template)), LEAST_DEVIATION * template.size**0.5)
    return np.asarray(cv2.divide(scores, squares, dst=scores, scale=1 / length), np.float32)


def peaks(scores: NDArray[np.float32], count: int, apart_px: int) -> list[tuple[float, float, float]]:
    """The ``count`` best local maxima as (x, y, score), at least ``apart_px`` from each other, to parts of a pixel."""
    return [(*vertex(scores, x, y), score) for x, y, score in summits(scores, count, apart_px)]


def vertex(scores: NDArray[np.float32], x: int, y: int) -> tuple[float, float]:
    """A maximum at whole pixels to parts of one."""
    return x + _vertex(scores[y], x), y + _vertex(scores[:, x], y)


def summits(
    scores: NDArray[np.float32], count: int, apart_px: int, but_near_xy: tuple[int, int] | None = None
) -> list[tuple[int, int, float]]:
    """:func:`peaks` at whole pixels.

    Those within ``apart_px`` of ``but_near_xy`` are left out; the slope that leads up to that place is no maximum either.
    """
    if not scores.size:  # OpenCV divides by nought
        return []
    if min(scores.shape) >= 3:
        left = np.where(scores >= cv2.dilate(scores, None), scores, np.float32(-1))  # None: 3 x 3
    else:
        left = scores.copy()
    if but_near_xy is not None:
        x, y = but_near_xy
        left[max(0, y - apart_px) : max(0, y + apart_px + 1), max(0, x - apart_px) : max(0, x + apart_px + 1)] = -1
    found = []
    for _ in range(count):
        _, best, _, (x, y) = cv2.minMaxLoc(left)
        if best <= 0:
            break
        found.append((x, y, best))
        left[max(0, y - apart_px) : y + apart_px + 1, max(0, x - apart_px) : x + apart_px + 1] = -1
    return found


def _vertex(line: NDArray[np.float32], i: int) -> float:
    """The offset in (-0.5, 0.5) of the parabola through a maximum and its two neighbours; 0 at a border."""
    if i == 0 or i == len(line) - 1:
        return 0.0
    before, here, after = line[i - 1 : i + 2].tolist()
    bend = before - 2 * here + after
    return 0.0 if bend >= -1e-9 else min(0.5, max(-0.5, (before - after) / (2 * bend)))


@dataclass(frozen=True)
class Maps:
    """The correlations of a crop that was not resized with all places of its original, at little resolution.

    ``whole`` and ``part`` are the planes that were correlated as they are (``plain``) and band-passed (``banded``): reduced by ``factor``.
    """

    whole: Plane
    part: Plane
    factor: int
    plain: NDArray[np.float32]
    banded: NDArray[np.float32]


def maps_at_same_scale(original: Plane, crop: Plane, template_px: int, band_px: int) -> Maps | None:
    """Correlates both planes, reduced by the same whole factors, so that the template's long side is about ``template_px``.

    None if the crop is too large for the original, or very small.  Cost: well under a millisecond.
    """
    reduced = _reduced_alike(original, crop, template_px)
    if reduced is None:
        return None
    original, crop, factor = reduced
    whole, part = original.pixels.astype(np.float32), crop.pixels.astype(np.float32)
    banded = bands_map(band_pass(whole, band_px), band_pass(part, band_px))
    return Maps(original, crop, factor, correlation_map(whole, part), banded)


def _reduced_alike(original: Plane, crop: Plane, template_px: int) -> tuple[Plane, Plane, int] | None:
    """Both planes at the same resolution, the crop's long side about ``template_px``, and by what they were reduced last."""
    step = max(original.step, crop.step)
    if min(crop.size_wh) * crop.step < 3 * step:
        return None
    original, crop = original.reduced(round(step / original.step)), crop.reduced(round(step / crop.step))
    factor = reduction(crop.size_wh, template_px)
    original, crop = original.reduced(factor), crop.reduced(factor)
    if min(crop.size_wh) < 3 or crop.size_wh[0] > original.size_wh[0] or crop.size_wh[1] > original.size_wh[1]:
        return None
    return original, crop, factor


def standing_out(original: Plane, crop: Plane, template_px: int, band_px: int, share: float) -> list[Candidate]:
    """The place where a crop that was not resized correlates better than anywhere else, by 1 / ``share``; none if there is none.

    Looked for band-passed at more resolution than :func:`at_same_scale`, where thin lines and faint texture are lost.
    Cost: some milliseconds.
    """
    reduced = _reduced_alike(original, crop, template_px)
    if reduced is None:
        return []
    whole, part, _ = reduced
    scores = bands_map(band_pass(whole.pixels, band_px), band_pass(part.pixels, band_px))
    (x, y, ncc), *others = peaks(scores, 2, apart_px=3) or [(0.0, 0.0, 0.0)]
    if ncc <= LEAST_STANDING_OUT or any(other > share * ncc for _, _, other in others):
        return []
    place = from_between(whole, part, shifted(0, 0))
    place[:, 2] += x * whole.step_xy[0], y * whole.step_xy[1]
    return [Candidate(place, ncc, whole.step)]


def reduction(template_wh: tuple[int, int], template_px: int) -> int:
    """By which whole factor a template is reduced to be correlated."""
    return max(1, min(round(max(template_wh) / template_px), min(template_wh) // 4))


def at_same_scale(maps: Maps | None, count: int) -> list[Candidate]:
    """Candidates for a crop that was not resized, best first."""
    if maps is None:
        return []
    whole, corner = maps.whole, from_between(maps.whole, maps.part, shifted(0, 0))
    found: list[Candidate] = []
    for scores in (maps.plain, maps.banded):
        for x, y, ncc in peaks(scores, count, apart_px=3):
            place = corner.copy()
            place[:, 2] += x * whole.step_xy[0], y * whole.step_xy[1]
            found.append(Candidate(place, ncc, whole.step))
    found.sort(key=lambda c: -c.ncc)
    return distinct(found, apart_px=2 * whole.step)


def distinct(candidates: list[Candidate], apart_px: float) -> list[Candidate]:
    """Leaves out candidates whose shift and scale repeat an earlier one's."""
    kept: list[Candidate] = []
    known: list[list[float]] = []
    for candidate in candidates:
        a, _, x, _, d, y = candidate.place.ravel().tolist()
        if not any(
            abs(x - k[0]) < apart_px and abs(y - k[1]) < apart_px and abs(a - k[2]) < 0.03 and abs(d - k[3]) < 0.03 for k in known
        ):
            known.append([x, y, a, d])
            kept.append(candidate)
    return kept


def _swept(
    lowest: float, highest: float, ratio: float, template_px: int, long_px: float, least_step: float
) -> Iterator[tuple[float, float]]:
    """Scales ``ratio`` apart, farther where the template is smaller, and the original pixels a pixel that make it ``template_px`` long."""
    scale = lowest
    while scale <= highest:
        step = max(long_px / scale / template_px, least_step)
        yield scale, step
        smaller = template_px * scale * step / long_px  # 1 where there is enough for a whole template
        scale *= 1 + (ratio - 1) * min(smaller, MOST_WIDENED)


def over_scales(
    original: Plane, crop: Plane, lowest: float, highest: float, *, ratio: float, template_px: int, band_px: int, count: int,
    least_ncc: float,
) -> list[Candidate]:  # fmt: skip
    """Candidates over a sweep of scales (crop pixels per original pixel), best first; for crops too small or too plain for features.

    Those that correlate by less than ``least_ncc`` are none.
    Cost: one correlation of small pictures a scale.
    """
    found: list[Candidate] = []
    pyramid = [original]
    while min(pyramid[-1].size_wh) >= 32:
        pyramid.append(pyramid[-1].reduced(2))
    long_px = max(n * s for n, s in zip(crop.size_wh, crop.step_xy, strict=True))
    template_px = max(template_px, round(SHORT_SIDE_PX * max(crop.size_wh) / min(crop.size_wh)))
    for scale, step in _swept(lowest, highest, ratio, template_px, long_px, original.step):
        nearest = max((p for p in pyramid if p.step <= step * 1.001), key=lambda p: p.step)
        template, whole = crop.resampled(step * scale), nearest.resampled(step)
        if crop.step > step * scale * 1.02:  # the crop is the coarser one
            continue
        if min(template.size_wh) < 6 or template.size_wh[0] > whole.size_wh[0] or template.size_wh[1] > whole.size_wh[1]:
            continue
        linear = np.diag([template.step_xy[0] / whole.step_xy[0], template.step_xy[1] / whole.step_xy[1]]) / scale
        template_pixels, whole_pixels = template.pixels.astype(np.float32), whole.pixels.astype(np.float32)
        scores = bands_map(band_pass(whole_pixels, band_px), band_pass_part(template_pixels, band_px))
        for x, y, ncc in peaks(scores, 2, apart_px=3):
            if ncc < least_ncc:
                break
            matrix = np.hstack([linear, [[x], [y]]])
            found.append(Candidate(without_shear(from_between(whole, template, matrix), crop.center_xy), ncc, whole.step))
    found.sort(key=lambda c: -c.ncc)
    return distinct(found, apart_px=3 * original.step)[:count]
