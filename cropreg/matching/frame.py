"""Frames: an even border that a person laid round the crop, and the picture inside it.

An even border may as well be the margin of a page: only where the original shows something else it is a frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine, apply, compose, growth, shifted
from cropreg.matching.plane import Plane, between, deviation

EVEN = 2.5  # grey levels; a row of a frame deviates less, even after JPEG
MOST = 0.35  # share of a side that a frame may take
LEAST_PX = 2
EDGE_PX = 2
UNEVEN_PX = 6
ALIKE_PX = 2  # frames of two sides that differ by no more are meant to be the same
TONE = 3.0  # grey levels by which a line's mean may differ from the original's, if both show the same margin
GRAIN = 6.0  # the same for the mean absolute difference of its pixels: noise and JPEG; a line of text makes 10 and more
PEAK, FAR_PEAK = 30.0, 10.0  # the same for any of them, at full size and from afar: a star that the crop lacks
SHRUNK, SOFT = 1.2, 0.4  # times from which a crop's pixels are means of several; the Gaussian that stands for them, in its pixels
FADE_STEP = 25.0  # grey levels from one even border to the next inside it: frames round each other are told apart by more
TONE_BIN = 8  # grey levels that are edited alike
PIECES = 16  # of the pixels they are learned from: some arithmetic at a time
LAST_TONES = 3  # bins, of which what became of darker or brighter tones is told
EVEN_PX = 9  # side of the square over which the original is even where tones are learned
PAPER, MOSTLY, HARDLY = 8.0, 0.5, 0.35  # grey levels; the share of a line that is paper, beside letters, and beyond the bar's edge
LINES = 64  # looked at together
FEW_LINES = 16  # compared with the original together: those of a wide frame round 24 MP would take 15 MB
WINDOW_PX, WINDOWS_PER_SIDE = 128, 6  # where tones are learned
FEW_TONES = 0.1  # share of the pixels of one tone that may have become anything
OUTSIDE = -1000.0  # what lies beside the original: like no tone

Interval = tuple[NDArray[np.float64], NDArray[np.float64]]
Sides = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Inner:
    """The picture inside an even border.

    ``sides`` are the even lines at the crop's left, top, right, bottom, ``trimmed`` how many more were left out there.
    """

    picture: Picture
    sides: Sides
    trimmed: Sides


def inside_frame(crop: Picture) -> Inner | None:
    """The picture inside an even border; None when fewer than two sides have one.

    Cost: the full decode of the crop, if its search plane shows a border at all.
    """
    if sum(n > 0 for n in even_sides(crop.search_plane.pixels)) < 2:
        return None
    pixels = crop.full()
    sides = [n if n >= LEAST_PX else 0 for n in even_sides(pixels)]
    height, width = pixels.shape
    if min(sides) > 0 and max(sides) - min(sides) <= UNEVEN_PX:
        sides = [min(sides)] * 4  # the same all round: what is more on one side belongs to the picture
    if sum(n > 0 for n in sides) < 2 or width - sides[0] - sides[2] < 24 or height - sides[1] - sides[3] < 24:
        return None
    return _inside(crop, sides)


def beside_bars(crop: Picture) -> Inner | None:
    """The picture beside bars of paper, each at a side of its own and perhaps with a caption; None if there is but an even border.

    Cost: the full decode of the crop, if its search plane shows one.
    """
    if not any(paper_sides(crop.search_plane.pixels)):
        return None
    sides = paper_sides(crop.full())
    width, height = crop.size_wh
    if not any(sides) or width - sides[0] - sides[2] < 24 or height - sides[1] - sides[3] < 24:
        return None
    more = max(abs(n - even) for n, even in zip(sides, even_sides(crop.full()), strict=True))
    return _inside(crop, sides) if more > UNEVEN_PX else None


def _inside(crop: Picture, sides: Sequence[int]) -> Inner:
    """The picture inside so many lines at each side, and inside what JPEG and resizing have blurred of their edge."""
    (left, top, right, bottom), (x1, y1, x2, y2) = sides, (EDGE_PX if n else 0 for n in sides)
    picture = without(crop, (left + x1, top + y1, right + x2, bottom + y2))
    return Inner(picture, (left, top, right, bottom), (x1, y1, x2, y2))


def fades_away(crop: Picture, inner: Inner) -> bool:
    """Whether two more even borders lie inside, each of nearly the tone of the one round it: a vignette has as many as one looks for."""
    again = inside_frame(inner.picture)
    if again is None or inside_frame(again.picture) is None:
        return False
    outer, middle, inmost = (_border_tone(picture, inner.sides) for picture in (crop, inner.picture, again.picture))
    return max(abs(outer - middle), abs(middle - inmost)) < FADE_STEP


def _border_tone(picture: Picture, sides: Sides) -> float:
    """The mean of the outermost lines of those ``sides`` that are not nought, in grey levels."""
    pixels = picture.full()
    lines = pixels[:, 0], pixels[0], pixels[:, -1], pixels[-1]
    return float(np.mean([line.mean() for line, n in zip(lines, sides, strict=True) if n]))


def without(crop: Picture, sides: Sides) -> Picture:
    """The crop without so many lines at its left, top, right and bottom.  Cost: its full decode."""
    pixels, (left, top, right, bottom) = crop.full(), sides
    height, width = pixels.shape
    picture = Picture.of_pixels(pixels[top : height - bottom, left : width - right], crop.name)
    picture.num_trimmed = crop.num_trimmed + 1
    picture.rounding_steps = crop.rounding_steps
    picture.block_corner_xy = (crop.block_corner_xy[0] - left) % 8, (crop.block_corner_xy[1] - top) % 8
    return picture


def is_margin(original: Plane, crop: Plane, place: Affine) -> bool:
    """Whether the original shows the crop's even border as well, as far as the two planes tell; False where they cannot tell."""
    sides = even_sides(crop.pixels)
    if not any(sides):
        return True
    matrix = between(original, crop, place)
    blurred = math.ceil(original.step / crop.step) + 1  # innermost lines, into which the picture reaches
    peak = PEAK if original.step == 1 else FAR_PEAK
    shared, clear, sure = shared_lines(original.pixels, crop.pixels, matrix, sides, blurred, peak)
    return sure and shared == clear == sides and all(n == 0 or n > blurred for n in sides)


def margins_of(inner: Inner, original: NDArray[np.uint8], crop: NDArray[np.uint8], place: Affine) -> tuple[Sides, bool]:
    """How many of the lines at each side that the inner picture lacks are its own: left, top, right, bottom; and whether that is sure.

    ``place`` is that of the whole crop.  Where it lacks something small that the original shows, it may have been retouched, or
    freed from noise; at two sides and more it is rather a frame.
    """
    matrix = between(Plane(original), Plane(crop), place)
    shared, clear, told = shared_lines(original, crop, matrix, inner.sides)
    own, sure = _own_lines(inner.sides, shared)
    lacking = sum(a < b for a, b in zip(clear, shared, strict=True))
    if lacking > 1:
        own, _ = _own_lines(inner.sides, clear)
    blurred = _blurred_lines(inner, original, crop, matrix)
    left, top, right, bottom = (n + more if n else some for n, more, some in zip(own, inner.trimmed, blurred, strict=True))
    return (left, top, right, bottom), sure and told and not lacking


def _blurred_lines(inner: Inner, original: NDArray[np.uint8], crop: NDArray[np.uint8], matrix: Affine) -> Sides:
    """How many of the lines that were trimmed at each side look more like the original than like the border, from the inside outwards."""
    height, width = crop.shape
    x1, y1, x2, y2 = (n + more for n, more in zip(inner.sides, inner.trimmed, strict=True))
    x2, y2 = width - x2, height - y2
    tones, counts = _tones(original, crop, matrix, (x1, y1, x2, y2)), [0, 0, 0, 0]
    for side, n in enumerate(inner.trimmed):
        if not n:
            continue
        left, top, right, bottom = ((x1 - n, y1, x1, y2), (x1, y1 - n, x2, y1), (x2, y1, x2 + n, y2), (x1, y2, x2, y2 + n))[side]
        outermost = (crop[:, 0], crop[0], crop[:, -1], crop[-1])[side]
        here, there = crop[top:bottom, left:right].astype(np.float32), _shown(original, matrix, (left, top, right, bottom))
        along = 1 if side % 2 else 0
        own = np.abs(here - np.clip(here, *tones.likely(there))).mean(along) <= np.abs(here - np.median(outermost)).mean(along)
        counts[side] = int(np.argmin([*(own[::-1] if side < 2 else own), False]))
    return counts[0], counts[1], counts[2], counts[3]


def _own_lines(sides: Sides, shared: Sides) -> tuple[Sides, bool]:
    """The picture's own of the even lines at each side, and whether that is sure.

    ``shared`` are those that the original shows as well.  White on white shows no frame, so what it is at the other sides tells of it:
    seen at three, or if the border has its width everywhere, it goes round; where a side has none, a bar may have another one opposite.
    Else nobody can tell.
    """
    frames = [n - own for n, own in zip(sides, shared, strict=True)]
    wide = sorted((n for n in frames if n > 0), reverse=True)
    if not wide:
        return sides, True
    same = next((a for a, b in itertools.pairwise(wide) if a - b <= ALIKE_PX), 0)
    width = same or wide[0]
    partly = [0 < frame < width - ALIKE_PX and width <= n for n, frame in zip(sides, frames, strict=True)]
    hidden = [n >= LEAST_PX and not frame for n, frame in zip(sides, frames, strict=True)]
    sure = same > 0 or not any(partly)
    if min(sides) < LEAST_PX:
        hidden = [hides and frames[i - 2] > 0 for i, hides in enumerate(hidden)]
        sure = sure and not any(hidden)
    elif any(hidden):
        level = max(sides) - min(sides) <= ALIKE_PX
        sure = same > 0 and (level or (sum(hidden) == 1 and same <= sides[hidden.index(True)]))
    more = [n >= width and (p or h) for n, p, h in zip(sides, partly, hidden, strict=True)]
    left, top, right, bottom = (n - (width if m else frame) for n, frame, m in zip(sides, frames, more, strict=True))
    return (left, top, right, bottom), sure


def shared_lines(
    original: NDArray[np.generic], crop: NDArray[np.generic], matrix: Affine, sides: Sides, blurred: int = 0, peak: float = PEAK
) -> tuple[Sides, Sides, bool]:
    """How many even lines at each side of ``crop``, from the inside outwards, ``original`` shows as well: no frame, but a margin.

    Args:
        original, crop: grey pixels, of any resolution.
        matrix: from the crop's pixel centres to the original's.
        sides: even lines at the left, top, right and bottom.
        blurred: innermost lines that need not be the same.
        peak: grey levels by which a pixel differs that shows something small.

    Returns:
        Those that are the same as a whole; those up to the first one in which the crop lacks something small; and whether that is told
        by tones that the crop shows elsewhere, too: of darker and brighter ones nobody knows what an editor has made of them.
    """
    height, width = crop.shape
    left, top, right, bottom = sides
    tones = _tones(original, crop, matrix, (left, top, width - right, height - bottom))
    guessed: list[bool] = []

    def compared(x1: int, y1: int, x2: int, y2: int, turn: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        # turned so that its innermost line is the first row
        there = np.rot90(_shown(original, matrix, (x1, y1, x2, y2)), turn)
        here = np.rot90(crop[y1:y2, x1:x2], turn).astype(np.float32)
        nearest = np.clip(here, *tones.likely(there))
        alike = _alike(nearest, here)
        if not alike.all():
            perhaps = _alike(np.clip(here, *tones.possible(there)), here) & (there.std(1) < GRAIN)
            perhaps |= alike  # what counts are the lines up to the first one that differs
            if np.argmin([*perhaps, False]) > np.argmin([*alike, False]):
                guessed.append(True)
                return perhaps, np.ones(len(here), np.bool_)
        tone = here.mean(1, keepdims=True)
        dimmed = 2 * np.abs(here - tone) >= np.abs(nearest - tone)  # as by shrinking
        gone = (np.abs(nearest - here) >= peak) & ~dimmed
        return alike, ~gone.any(1)

    def count(side: int) -> tuple[int, int]:
        x1, y1, x2, y2 = left, top, width - right, height - bottom
        clear = sides[side]
        for done in range(0, sides[side], FEW_LINES):
            low, high = done, min(done + FEW_LINES, sides[side])
            parts = (
                (x1 - high, y1, x1 - low, y2, 1),
                (x1, y1 - high, x2, y1 - low, 2),
                (x2 + low, y1, x2 + high, y2, 3),
                (x1, y2 + low, x2, y2 + high, 0),
            )
            alike, calm = compared(*parts[side])
            alike[: max(0, blurred - done)] = True
            if not done and len(alike) > EDGE_PX:  # resizing has blurred the innermost ones
                alike[:EDGE_PX] |= alike[EDGE_PX]
            calm[: max(0, blurred - done, EDGE_PX - done)] = True  # the tip of a letter reaches into the innermost ones
            if not calm.all():
                clear = min(clear, done + int(np.argmin(calm)))
                clear = clear if clear > EDGE_PX else 0  # of those that were not asked nothing is known
            if not alike.all():
                same = done + int(np.argmin(alike))
                return same, min(same, clear)
        return sides[side], clear

    if left + right >= width or top + bottom >= height:
        return (0, 0, 0, 0), (0, 0, 0, 0), True
    (a, e), (b, f), (c, g), (d, h) = (count(side) for side in range(4))
    return (a, b, c, d), (e, f, g, h), not guessed


def _alike(there: NDArray[np.floating], here: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which lines (n, length) show the same tone, and nothing else."""
    apart = there - here
    return np.asarray((np.abs(apart.mean(1)) < TONE) & (np.abs(apart).mean(1) < GRAIN))


def _shown(original: NDArray[np.generic], matrix: Affine, part: Sides) -> NDArray[np.float32]:
    """What the original shows on a part (x1, y1, x2, y2) of the crop's grid: float32, ``OUTSIDE`` beyond its edge.

    Averaged as a shrunk crop is, or a star between two of its pixels would not be seen.
    """
    x1, y1, x2, y2 = part
    here = compose(matrix, shifted(x1, y1))
    corners = apply(here, np.array([[0, 0], [x2 - x1, 0], [0, y2 - y1], [x2 - x1, y2 - y1]], np.float64))
    size = np.array(original.shape[::-1])
    low = np.clip(np.floor(corners.min(0)) - 1, 0, size - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 2, low + 1, size).astype(int)
    region = original[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    here[:, 2] -= low
    shrunk = growth(matrix)
    if shrunk > SHRUNK:
        region = cv2.GaussianBlur(region, (0, 0), SOFT * shrunk)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(region, here, (x2 - x1, y2 - y1), flags=flags, borderValue=OUTSIDE), np.float32)


@dataclass(frozen=True)
class Tones:
    """What became of the original's tones in the crop: some ``before`` (n,), rising, their medians ``after``, and between what they lie."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]

    def likely(self, there: NDArray[np.float32]) -> Interval:
        """What became of tones of the original, at least and at most.

        Darker and brighter ones than are known are shifted by as much as the last, or change on as fast as the last few did.
        """
        inside = np.interp(there, self.before, self.after)
        beyond = np.minimum(there - self.before[0], 0) + np.maximum(there - self.before[-1], 0)
        few = min(LAST_TONES, len(self.before) - 1)
        darker, brighter = (
            (self.after[b] - self.after[a]) / (self.before[b] - self.before[a]) if few else 1.0
            for a, b in ((0, few), (-1 - few, -1))
        )
        shifted_on, changed_on = inside + beyond, inside + beyond * np.where(beyond < 0, darker, brighter)
        outside = there < OUTSIDE / 2
        both = [np.where(outside, OUTSIDE, np.clip(values, 0, 255)) for values in (shifted_on, changed_on)]
        return np.minimum(*both), np.maximum(*both)

    def possible(self, there: NDArray[np.float32]) -> Interval:
        """The same, if an editor may have done anything but turn dark into bright, and not the same everywhere."""
        low, high = self.likely(there)
        outside, dark, bright = there < OUTSIDE / 2, there < self.before[0], there > self.before[-1]
        low = np.minimum(low, np.where(dark, 0.0, np.interp(there, self.before, self.least)))
        high = np.maximum(high, np.where(bright, 255.0, np.interp(there, self.before, self.most)))
        return np.where(outside, OUTSIDE, low), np.where(outside, OUTSIDE, high)


def _tones(original: NDArray[np.generic], crop: NDArray[np.generic], matrix: Affine, inner: Sides) -> Tones:
    """How the crop's tones were edited.

    Learned from windows all over its ``inner`` part, where both show the same picture, and only where the original is even.
    """
    x1, y1, x2, y2 = inner
    w, h = min(WINDOW_PX, x2 - x1), min(WINDOW_PX, y2 - y1)
    before, after = [], []
    for y in _spread(y1, y2, h):
        for x in _spread(x1, x2, w):
            there = _shown(original, matrix, (x, y, x + w, y + h))
            even = (np.abs(there - cv2.blur(there, (EVEN_PX, EVEN_PX))) < EVEN) & (there > OUTSIDE / 2)
            before.append(there[even])
            after.append(crop[y : y + h, x : x + w][even])
    tones, edited = np.concatenate(before), np.concatenate(after)
    del before, after
    bins = np.concatenate([np.clip(part / TONE_BIN, 0, 255 // TONE_BIN).astype(np.uint8) for part in np.array_split(tones, PIECES)])
    counts = np.array([np.count_nonzero(bins == b) for b in range(255 // TONE_BIN + 1)])
    seen = np.nonzero(counts >= max(8, bins.size // 5000))[0]
    if not len(seen):
        return Tones(*np.tile([0.0, 255.0], (4, 1)))
    # Medians: what was painted over the crop is no edit of tone.
    learned = [(np.median(tones[bins == b]), *np.quantile(edited[bins == b], (0.5, FEW_TONES, 1 - FEW_TONES))) for b in seen]
    return Tones(*np.array(learned, np.float64).T)


def _spread(start: int, end: int, side: int) -> list[int]:
    """Where windows of ``side`` begin that cover ``start`` to ``end`` as well as a few can."""
    count = min(WINDOWS_PER_SIDE, math.ceil((end - start) / side))
    return np.linspace(start, end - side, count).astype(int).tolist()


def paper_sides(pixels: NDArray[np.generic]) -> Sides:
    """How many lines at the left, top, right and bottom are mostly of one tone, up to a clear edge; the outermost is even."""

    def count(lines: NDArray[np.generic]) -> int:  # lines (n, length), outermost first
        if deviation(np.ascontiguousarray(lines[0])) >= EVEN:
            return 0
        tone, most = float(np.median(lines[0])), int(len(lines) * MOST)
        shares = np.empty(0)
        for first in range(0, most, LINES):
            some = np.abs(lines[first : min(first + LINES, most)].astype(np.float32) - tone) < PAPER
            shares = np.concatenate([shares, some.mean(1)])
            ends = np.nonzero(shares < MOSTLY)[0]
            if len(ends) and ends[0] + EDGE_PX + LEAST_PX < len(shares):
                end = int(ends[0])
                beyond = slice(end + EDGE_PX, end + EDGE_PX + LEAST_PX)
                steep = np.median(np.abs(lines[beyond].astype(np.float32) - tone)) >= 2 * PAPER  # a sky is not
                return end if end >= LEAST_PX and shares[beyond].max() < HARDLY and steep else 0
        return 0

    return count(pixels.T), count(pixels), count(pixels.T[::-1]), count(pixels[::-1])


def even_sides(pixels: NDArray[np.generic]) -> Sides:
    """How many even lines of one tone lie at the left, top, right and bottom; none anywhere if fewer than two sides have any."""
    border = [line for line in (pixels[:1], pixels[-1:], pixels[:, :1], pixels[:, -1:]) if deviation(line) < EVEN]
    if len(border) < 2:
        return 0, 0, 0, 0
    tone = float(np.median(np.concatenate([line.ravel() for line in border])))

    def count(lines: NDArray[np.generic]) -> int:  # lines (n, length), outermost first
        most = int(len(lines) * MOST)
        for first in range(0, most, LINES):
            some = lines[first : min(first + LINES, most)].astype(np.float32)
            even = (np.abs(some.mean(1) - tone) < EVEN) & (some.std(1) < EVEN)
            if not even.all():
                return first + int(np.argmin(even))
        return most

    return count(pixels.T), count(pixels), count(pixels.T[::-1]), count(pixels[::-1])
