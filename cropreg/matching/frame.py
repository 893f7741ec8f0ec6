"""Frames: an even border that a person laid round the crop, and the picture inside it.

An even border may as well be the margin of a page: only where the original shows something else it is a frame.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.picture import Picture
from cropreg.matching.place import Affine, compose
from cropreg.matching.plane import Plane, between

EVEN = 2.5  # grey levels; a row of a frame deviates less, even after JPEG
MOST = 0.35  # share of a side that a frame may take
LEAST_PX = 2
EDGE_PX = 2
UNEVEN_PX = 6
ALIKE_PX = 2  # frames of two sides that differ by no more are meant to be the same
TONE = 3.0  # grey levels by which a line's mean may differ from the original's, if both show the same margin
TONE_BIN = 8  # grey levels that are edited alike
EVEN_PX = 9  # side of the square over which the original is even where tones are learned
OUTSIDE = -1000.0  # what lies beside the original: like no tone
GRAIN = 6.0  # the same for the mean absolute difference of its pixels: noise and JPEG; a line of text makes 10 and more


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
    # JPEG and resizing blur the edge of the frame into the picture: leave out a little of that, too
    extra = [EDGE_PX if n else 0 for n in sides]
    left, top, right, bottom = (n + e for n, e in zip(sides, extra, strict=True))
    inner = np.ascontiguousarray(pixels[top : height - bottom, left : width - right])
    picture = Picture.of_pixels(inner, crop.name)
    return Inner(picture, (sides[0], sides[1], sides[2], sides[3]), (extra[0], extra[1], extra[2], extra[3]))


def is_margin(original: Plane, crop: Plane, place: Affine) -> bool:
    """Whether the original shows the crop's even border as well, as far as the two planes tell; False where they cannot tell."""
    sides = even_sides(crop.pixels)
    matrix = between(original, crop, place)
    blurred = math.ceil(original.step / crop.step) + 1  # innermost lines, into which the picture reaches
    shared = shared_lines(original.pixels, crop.pixels, matrix, sides, blurred)
    return shared == sides and all(n == 0 or n > blurred for n in sides)


def margins_of(inner: Inner, original: NDArray[np.uint8], crop: NDArray[np.uint8], place: Affine) -> tuple[int, ...]:
    """How many of the even lines at each side are the picture's own: left, top, right, bottom; ``place`` is that of the whole crop.

    Where two sides show the same frame, it lies round all four, for white on white would not show it.
    """
    center = np.array([[1, 0, 0.5], [0, 1, 0.5]]), np.array([[1, 0, -0.5], [0, 1, -0.5]])
    shared = shared_lines(original, crop, compose(center[1], compose(place, center[0])), inner.sides)
    frames = [n - own for n, own in zip(inner.sides, shared, strict=True)]
    wide = sorted(n for n in frames if n > 0)
    same = next((a for a, b in itertools.pairwise(wide) if b - a <= ALIKE_PX), None)
    if same is not None:
        frames = [max(frame, same) if n >= same else frame for n, frame in zip(inner.sides, frames, strict=True)]
    return tuple(n - frame for n, frame in zip(inner.sides, frames, strict=True))


def shared_lines(
    original: NDArray[np.generic], crop: NDArray[np.generic], matrix: Affine, sides: tuple[int, int, int, int], blurred: int = 0
) -> tuple[int, int, int, int]:
    """How many even lines at each side of ``crop``, from the inside outwards, ``original`` shows as well: no frame, but a margin.

    Args:
        original, crop: grey pixels, of any resolution.
        matrix: from the crop's pixel centres to the original's.
        sides: even lines at the left, top, right and bottom.
        blurred: innermost lines that need not be the same.
    """
    height, width = crop.shape
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    there = cv2.warpAffine(original.astype(np.float32), matrix, (width, height), flags=flags, borderValue=OUTSIDE)
    left, top, right, bottom = sides
    rows, columns = slice(top, height - bottom), slice(left, width - right)
    shown = crop.astype(np.float32)
    difference = _toned(there, there[rows, columns], shown[rows, columns]) - shown

    def count(lines: NDArray[np.float32]) -> int:  # lines (n, length), innermost first
        if not len(lines):
            return 0
        same = (np.abs(lines.mean(1)) < TONE) & (np.abs(lines).mean(1) < GRAIN)
        same[:blurred] = True
        return len(lines) if same.all() else int(np.argmin(same))

    return (
        count(difference[rows, :left].T[::-1]),
        count(difference[:top, columns][::-1]),
        count(difference[rows, width - right :].T),
        count(difference[height - bottom :, columns]),
    )


def _toned(pixels: NDArray[np.float32], original: NDArray[np.float32], crop: NDArray[np.float32]) -> NDArray[np.float32]:
    """``pixels`` of the original in the crop's tones, which may have been edited: learned where both show the same picture, and evenly.

    Between the tones that occur there it is interpolated, beyond them shifted.
    """
    even = np.abs(original - cv2.blur(original, (EVEN_PX, EVEN_PX))) < EVEN
    original, crop = original[even], crop[even]
    bins = np.clip(original / TONE_BIN, 0, 255 // TONE_BIN).astype(np.intp)
    number = np.bincount(bins, minlength=256 // TONE_BIN)
    seen = number >= max(8, bins.size // 5000)
    if not seen.any():
        return pixels
    # Medians: what was painted over the crop is no edit of tone.
    tones, edited = (np.array([np.median(values[bins == b]) for b in np.nonzero(seen)[0]]) for values in (original, crop))
    inside = np.interp(pixels, tones, edited)
    return (inside + np.minimum(pixels - tones[0], 0) + np.maximum(pixels - tones[-1], 0)).astype(np.float32)


def even_sides(pixels: NDArray[np.generic]) -> tuple[int, int, int, int]:
    """How many even lines of one tone lie at the left, top, right and bottom; none anywhere if fewer than two sides have any."""
    grey = pixels.astype(np.float32)
    if sum(float(line.std()) < EVEN for line in (grey[0], grey[-1], grey[:, 0], grey[:, -1])) < 2:
        return 0, 0, 0, 0
    tone = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))

    def count(lines: NDArray[np.float32]) -> int:  # lines (n, length), outermost first
        most = int(len(lines) * MOST)
        even = (np.abs(lines[:most].mean(1) - tone) < EVEN) & (lines[:most].std(1) < EVEN)
        return most if even.all() else int(np.argmin(even))

    return count(grey.T), count(grey), count(grey.T[::-1]), count(grey[::-1])
