"""Border: lines at the sides of a crop that was found which show something else than the original, as a caption or a shadow laid round it.

The tiles of a large crop outvote them, and its outermost lines are not compared at all, since smoothing has mirrored them; so they are
looked at by themselves, each along its length.  An even border of one tone is told from a margin in :mod:`cropreg.matching.frame`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, moved_within
from cropreg.matching.plane import Plane, between, deviation, warped
from cropreg.matching.verify import Evidence

BAND_PX = 15  # width of the mean that is taken away along a line
LEAST_DEVIATION = 1.0  # grey levels; a part of a line that deviates less shows nothing, nor does one with less than
LEAST_SHARE = 0.12  # of the crop's own deviation: edits of tone crush what is faint
OUTERMOST = 1  # plane lines left out: a cell there may reach beyond the crop
STRIP = 3  # lines that are looked at first
MOST = 0.35  # share of a side that may be laid round
ALIKE = 0.5  # correlation of a line over that of the crop's tiles, from which it shows the original, and
UNLIKE = 0.25  # up to which it does not
BAR_DEVIATION = 1.0  # grey levels; a line of a bar of one tone deviates less, even after JPEG, and
BAR_STEP = 25.0  # grey levels: its edge is a step that the original does not have
SAME_STEP = 1 / 3  # of it: one of the original's there that is as large, edited, is the edge of a margin
EDGE = 3  # lines over which smoothing spreads it
PARTS = 8  # of a line that are compared by themselves
LEAST_PARTS = 4  # of them that must show something
LEAST_LINE_PX = 5 * PARTS  # parts of shorter lines correlate by chance


def foreign_sides(original: Plane, crop: Plane, place: Affine, evidence: Evidence) -> tuple[int, int, int, int]:
    """How many lines of the crop's plane show something else, at its left, top, right and bottom; mostly none.

    ``original`` and ``crop`` have about the same resolution; ``evidence`` is how well the crop's tiles agree at its place.
    Cost: 0.2 ms where there are none.
    """
    counts, alike_ncc, matrix = [0, 0, 0, 0], ALIKE * evidence.median, between(original, crop, place)
    w, h = crop.size_wh
    if min(w, h) < LEAST_LINE_PX:
        return 0, 0, 0, 0
    strips = []
    for sides in ((0, 2), (1, 3)):  # opposite ones are as long, and half the cost together
        lines = [_lines(original, crop, matrix, side, OUTERMOST, OUTERMOST + STRIP) for side in sides]
        strips.append(_products(*zip(*lines, strict=True), rows=2))
    left_right, top_bottom = strips
    ncc = _ncc(np.stack([left_right[:, 0], top_bottom[:, 0], left_right[:, 1], top_bottom[:, 1]], 1), evidence)
    for side in range(4):
        most = int(MOST * (h if side % 2 else w))
        if not ncc[side] < alike_ncc:  # it is not a number where neither shows anything
            counts[side] = _bar(original, crop, matrix, side, most)
            continue
        products = _products(*zip(_lines(original, crop, matrix, side, 0, most)), rows=most)
        alike = _ncc(np.stack([cv2.blur(values, (1, STRIP)) for values in products]), evidence) >= alike_ncc
        counts[side] = int(np.argmax(alike)) if alike.any() else most
    return counts[0], counts[1], counts[2], counts[3]


def own_lines(original: Plane, crop: Plane, place: Affine, side: int, trimmed: int, evidence: Evidence) -> int:
    """How many of the ``trimmed`` outermost lines of a side, from the inside outwards, are the original's.

    As :func:`foreign_sides`, but of the crop at full size; ``side`` counts left, top, right, bottom.
    """
    if not trimmed:
        return 0
    lines = _lines(original, crop, between(original, crop, place), side, 0, trimmed)
    ncc = _ncc(_products(*zip(lines), rows=trimmed), evidence)[::-1]
    alike = ncc >= ALIKE * evidence.median
    foreign = ncc <= UNLIKE * evidence.median
    foreign[:-1] &= foreign[1:]  # two lines: one may be a scratch
    if not foreign.any() and alike.sum() >= trimmed / 2:
        return trimmed
    own = np.nonzero(alike[: np.argmax(foreign)] if foreign.any() else alike)[0]
    return int(own[-1]) + 1 if len(own) else 0


def _bar(original: Plane, crop: Plane, matrix: Affine, side: int, most: int) -> int:
    """How many of the outermost lines of a side are one tone, and end in a step that the original does not show."""
    lines = _outwards(crop.pixels, side)[:most]
    if deviation(np.ascontiguousarray(lines[OUTERMOST])) > BAR_DEVIATION:
        return 0
    flat = lines[OUTERMOST:].std(1) < BAR_DEVIATION
    count = OUTERMOST + (len(flat) if flat.all() else int(np.argmin(flat)))
    if count + EDGE >= most:
        return 0
    there = _outwards(warped(original, matrix, crop.size_wh), side)
    step, step_there = (float(v[count + EDGE].mean() - v[count - 1].mean()) for v in (lines, there))
    return count if abs(step) > BAR_STEP and step_there / step < SAME_STEP else 0


def _outwards(pixels: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    """Pixels (h, w) as the lines (n, length) along a side, the outermost first."""
    return (pixels.T, pixels, pixels.T[::-1], pixels[::-1])[side]


def _lines(
    original: Plane, crop: Plane, matrix: Affine, side: int, first: int, last: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The lines (n, length) ``first`` to ``last`` of a side, outermost first: the crop's, and what the original shows there."""
    w, h = crop.size_wh
    x1, y1, x2, y2 = ((first, 0, last, h), (0, first, w, last), (w - last, 0, w - first, h), (0, h - last, w, h - first))[side]
    there = warped(original, moved_within(matrix, x1, y1), (x2 - x1, y2 - y1))
    here = _outwards(crop.pixels[y1:y2, x1:x2], side)
    return np.ascontiguousarray(here, np.float32), np.ascontiguousarray(_outwards(there, side), np.float32)


def _products(here: Sequence[NDArray[np.float32]], there: Sequence[NDArray[np.float32]], *, rows: int) -> NDArray[np.float64]:
    """Of lines (n, length) of crop and original: the mean squares of both, and mean products, (3, rows, parts).

    ``here`` and ``there`` are of one or more sides; ``rows`` divides the number of their lines.  Each line in parts, so that a rounded
    corner or a few letters do not stand for all of it.
    """
    lines = np.concatenate([*here, *there])
    lines -= cv2.blur(lines, (BAND_PX, 1))
    ours, theirs = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    products = np.concatenate([ours * ours, theirs * theirs, ours * theirs])
    return np.asarray(cv2.resize(products, (PARTS, 3 * rows), interpolation=cv2.INTER_AREA), np.float64).reshape(3, rows, PARTS)


def _ncc(products: NDArray[np.float64], evidence: Evidence) -> NDArray[np.float64]:
    """The correlation (n,) of lines, the median of their parts; not a number where neither picture shows much.

    Of two in the middle the lower where all parts show something, else the upper: edits of tone leave only some, and those badly.
    """
    here, there, both = products
    there, both = there * evidence.gain**2, both * evidence.gain
    floor = max(LEAST_DEVIATION, LEAST_SHARE * evidence.energy) ** 2
    ncc = both / np.sqrt(np.maximum(here, floor) * np.maximum(there, floor))
    telling = np.maximum(here, there) >= floor
    ncc[~telling] = np.inf
    count = telling.sum(1)
    middle = np.sort(ncc, 1)[np.arange(len(ncc)), np.minimum(count, PARTS - 1) // 2]
    return np.where(count >= LEAST_PARTS, middle, np.nan)
