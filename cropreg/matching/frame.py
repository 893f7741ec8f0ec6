"""Frames: an even border that a person laid round the crop, and the picture inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropreg.matching.picture import Picture

EVEN = 2.5  # grey levels; a row of a frame deviates less, even after JPEG
MOST = 0.35  # share of a side that a frame may take
LEAST_PX = 2
EDGE_PX = 2
UNEVEN_PX = 6
BEYOND_PX = 2  # lines behind the frame where the picture must differ from it
STEP = 8.0  # grey levels by which it must: a sky fades, a frame ends


@dataclass(frozen=True)
class Inner:
    """The picture inside a frame, and by how many of its own pixels it was trimmed more than the frame: left, top, right, bottom."""

    picture: Picture
    trimmed: tuple[int, int, int, int]


def inside_frame(crop: Picture) -> Inner | None:
    """The picture inside an even border; None when fewer than two sides have one.

    Cost: the full decode of the crop, if its search plane shows a frame at all.
    """
    if sum(n > 0 for n in _even_sides(crop.search_plane.pixels)) < 2:
        return None
    pixels = crop.full()
    sides = [n if n >= LEAST_PX else 0 for n in _even_sides(pixels)]
    height, width = pixels.shape
    if min(sides) > 0 and max(sides) - min(sides) <= UNEVEN_PX:
        sides = [min(sides)] * 4  # the same all round: what is more on one side belongs to the picture
    if sum(n > 0 for n in sides) < 2 or width - sides[0] - sides[2] < 24 or height - sides[1] - sides[3] < 24:
        return None
    # JPEG and resizing blur the edge of the frame into the picture: leave out a little of that, too
    extra = [EDGE_PX if n else 0 for n in sides]
    left, top, right, bottom = (n + e for n, e in zip(sides, extra, strict=True))
    inner = np.ascontiguousarray(pixels[top : height - bottom, left : width - right])
    return Inner(Picture.of_pixels(inner, crop.name), (extra[0], extra[1], extra[2], extra[3]))


def _even_sides(pixels: NDArray[np.generic]) -> tuple[int, int, int, int]:
    """How many even lines of the frame's tone lie at the left, top, right and bottom."""
    grey = pixels.astype(np.float32)
    if sum(float(line.std()) < EVEN for line in (grey[0], grey[-1], grey[:, 0], grey[:, -1])) < 2:
        return 0, 0, 0, 0
    tone = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))

    def count(lines: NDArray[np.float32]) -> int:  # lines (n, length), outermost first
        most = int(len(lines) * MOST)
        even = (np.abs(lines[:most].mean(1) - tone) < EVEN) & (lines[:most].std(1) < EVEN)
        lines_even = most if even.all() else int(np.argmin(even))
        beyond = lines[min(lines_even + BEYOND_PX, len(lines) - 1)]
        return lines_even if float(np.abs(beyond - tone).mean()) > STEP else 0

    return count(grey.T), count(grey), count(grey.T[::-1]), count(grey[::-1])
