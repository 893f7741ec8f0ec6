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
EVEN_PX = 9  # side of the square over which the original is even where tones are learned
PAPER, MOSTLY, HARDLY = 8.0, 0.5, 0.35  # grey levels; the share of a line that is paper, beside letters, and beyond the bar's edge
LINES = 64  # looked at together
FEW_LINES = 16  # compared with the original together: those of a wide frame round 24 MP would take 15 MB
WINDOW_PX, WINDOWS_PER_SIDE = 128, 6  # where tones are learned
OUTSIDE = -1000.0  # what lies beside the original: like no tone


@dataclass(frozen=True)
class Inner:
    """The picture inside an even border.

    ``sides`` are the even lines at the crop's left, top, right, bottom, ``trimmed`` how many more were left out there.
    """

    picture: Picture
    sides: tuple[int, int, int, int]
    trimmed: tuple[int, int, int, int]


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
    """The picture beside bars of paper, each at a side of its own and perhaps with a caption; None without any.

    Cost: the full decode of the crop, if its search plane shows one.
    """
    if not any(paper_sides(crop.search_plane.pixels)):
        return None
    sides = paper_sides(crop.full())
    width, height = crop.size_wh
    if not any(sides) or width - sides[0] - sides[2] < 24 or height - sides[1] - sides[3] < 24:
        return None
    return _inside(crop, sides)


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


def _border_tone(picture: Picture, sides: tuple[int, int, int, int]) -> float:
    """The mean of the outermost lines of those ``sides`` that are not nought, in grey levels."""
    pixels = picture.full()
    lines = pixels[:, 0], pixels[0], pixels[:, -1], pixels[-1]
    return float(np.mean([line.mean() for line, n in zip(lines, sides, strict=True) if n]))


def without(crop: Picture, sides: tuple[int, int, int, int]) -> Picture:
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
    shared = shared_lines(original.pixels, crop.pixels, matrix, sides, blurred, PEAK if original.step == 1 else FAR_PEAK)
    return shared == sides and all(n == 0 or n > blurred for n in sides)


def margins_of(
    inner: Inner, original: NDArray[np.uint8], crop: NDArray[np.uint8], place: Affine
) -> tuple[tuple[int, int, int, int], bool]:
    """How many of the even lines at each side are the picture's own: left, top, right, bottom; and whether that is sure.

    White on white shows no frame, so what a frame is at the other sides tells of it.  ``place`` is that of the whole crop.
    """
    shared = shared_lines(original, crop, between(Plane(original), Plane(crop), place), inner.sides)
    frames = [n - own for n, own in zip(inner.sides, shared, strict=True)]
    wide = sorted((n for n in frames if n > 0), reverse=True)
    width = next((a for a, b in itertools.pairwise(wide) if a - b <= ALIKE_PX), wide[0] if wide else 0)
    seen = [frame >= width - ALIKE_PX for frame in frames]
    hidden = [n >= width and not shows for n, shows in zip(inner.sides, seen, strict=True)]
    sure = True
    if any(hidden):
        all_round = all(s or h for s, h in zip(seen, hidden, strict=True))
        cornered = (seen[0] or seen[2]) and (seen[1] or seen[3])
        bars = all(seen[i] and seen[i + 2] for i in range(2) if seen[i] or seen[i + 2])
        sure = cornered if all_round else bars
        if all_round or not bars:
            frames = [max(frame, width) if h else frame for frame, h in zip(frames, hidden, strict=True)]
    left, top, right, bottom = (n - frame for n, frame in zip(inner.sides, frames, strict=True))
    return (left, top, right, bottom), sure


def shared_lines(
    original: NDArray[np.generic], crop: NDArray[np.generic], matrix: Affine, sides: tuple[int, int, int, int],
    blurred: int = 0, peak: float = PEAK,
) -> tuple[int, int, int, int]:  # fmt: skip
    """How many even lines at each side of ``crop``, from the inside outwards, ``original`` shows as well: no frame, but a margin.

    Args:
        original, crop: grey pixels, of any resolution.
        matrix: from the crop's pixel centres to the original's.
        sides: even lines at the left, top, right and bottom.
        blurred: innermost lines that need not be the same.
        peak: grey levels by which no pixel of a line may differ.
    """
    height, width = crop.shape
    left, top, right, bottom = sides
    tones, edited = _tones(original, crop, matrix, (left, top, width - right, height - bottom))

    def same(x1: int, y1: int, x2: int, y2: int, turn: int) -> NDArray[np.bool_]:
        # turned so that its innermost line is the first row
        there = np.rot90(_shown(original, matrix, (x1, y1, x2, y2)), turn)
        inside = np.interp(there, tones, edited)  # beyond the tones that were learned they are shifted
        there = inside + np.minimum(there - tones[0], 0) + np.maximum(there - tones[-1], 0)
        lines = there - np.rot90(crop[y1:y2, x1:x2], turn)
        apart = np.abs(lines)
        return np.asarray((np.abs(lines.mean(1)) < TONE) & (apart.mean(1) < GRAIN) & (apart.max(1) < peak))

    def count(side: int) -> int:
        x1, y1, x2, y2 = left, top, width - right, height - bottom
        for done in range(0, sides[side], FEW_LINES):
            low, high = done, min(done + FEW_LINES, sides[side])
            parts = (
                (x1 - high, y1, x1 - low, y2, 1),
                (x1, y1 - high, x2, y1 - low, 2),
                (x2 + low, y1, x2 + high, y2, 3),
                (x1, y2 + low, x2, y2 + high, 0),
            )
            alike = same(*parts[side])
            alike[: max(0, blurred - done)] = True
            if not alike.all():
                return done + int(np.argmin(alike))
        return sides[side]

    if left + right >= width or top + bottom >= height:
        return 0, 0, 0, 0
    return count(0), count(1), count(2), count(3)


def _shown(original: NDArray[np.generic], matrix: Affine, part: tuple[int, int, int, int]) -> NDArray[np.float32]:
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


def _tones(
    original: NDArray[np.generic], crop: NDArray[np.generic], matrix: Affine, inner: tuple[int, int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How the crop's tones were edited: tones of the original, rising, and what became of them in the crop.

    Learned from windows all over its ``inner`` part, where both show the same picture, and only where the original is even.
    """
    x1, y1, x2, y2 = inner
    w, h = min(WINDOW_PX, x2 - x1), min(WINDOW_PX, y2 - y1)
    before, after = [], []
    for y in _spread(y1, y2, h):
        for x in _spread(x1, x2, w):
            there = _shown(original, matrix, (x, y, x + w, y + h))
            even = np.abs(there - cv2.blur(there, (EVEN_PX, EVEN_PX))) < EVEN
            before.append(there[even])
            after.append(crop[y : y + h, x : x + w][even])
    tones, edited = np.concatenate(before), np.concatenate(after)
    del before, after
    bins = np.concatenate([np.clip(part / TONE_BIN, 0, 255 // TONE_BIN).astype(np.uint8) for part in np.array_split(tones, PIECES)])
    counts = np.array([np.count_nonzero(bins == b) for b in range(255 // TONE_BIN + 1)])
    seen = np.nonzero(counts >= max(8, bins.size // 5000))[0]
    if not len(seen):
        return np.array([0.0, 255.0]), np.array([0.0, 255.0])
    # Medians: what was painted over the crop is no edit of tone.
    learned = [(float(np.median(tones[bins == b])), float(np.median(edited[bins == b]))) for b in seen]
    return np.array([a for a, _ in learned]), np.array([b for _, b in learned])


def _spread(start: int, end: int, side: int) -> list[int]:
    """Where windows of ``side`` begin that cover ``start`` to ``end`` as well as a few can."""
    count = min(WINDOWS_PER_SIDE, math.ceil((end - start) / side))
    return np.linspace(start, end - side, count).astype(int).tolist()


def paper_sides(pixels: NDArray[np.generic]) -> tuple[int, int, int, int]:
    """How many lines at the left, top, right and bottom are mostly of one tone, up to a clear edge; the outermost is even."""

    def count(lines: NDArray[np.generic]) -> int:  # lines (n, length), outermost first
        if deviation(np.ascontiguousarray(lines[0])) >= EVEN:
            return 0
        tone, most = float(np.median(lines[0])), int(len(lines) * MOST)
        shares = np.empty(0)
        for first in range(0, most, LINES):
            some = np.abs(lines[first : first + LINES].astype(np.float32) - tone) < PAPER
            shares = np.concatenate([shares, some.mean(1)])
            ends = np.nonzero(shares < MOSTLY)[0]
            if len(ends) and ends[0] + EDGE_PX + LEAST_PX < len(shares):
                end = int(ends[0])
                beyond = shares[end + EDGE_PX : end + EDGE_PX + LEAST_PX]
                return end if end >= LEAST_PX and beyond.max() < HARDLY else 0
        return 0

    return count(pixels.T), count(pixels), count(pixels.T[::-1]), count(pixels[::-1])


def even_sides(pixels: NDArray[np.generic]) -> tuple[int, int, int, int]:
    """How many even lines of one tone lie at the left, top, right and bottom; none anywhere if fewer than two sides have any."""
    border = pixels[:1], pixels[-1:], pixels[:, :1], pixels[:, -1:]
    if sum(deviation(line) < EVEN for line in border) < 2:
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
