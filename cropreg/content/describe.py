"""Describe: a few hundred binary features of a picture's search plane, small enough to keep those of all originals in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.picture import Picture

LONG_SIDE_PX = 640  # of the plane that is looked at: libjpeg's 1/8 of 24 MP is 750 px
LEAST_LONG_SIDE_PX = 480  # smaller planes are enlarged: a feature's patch is 31 px, and stays away from the edges
ENLARGED_MOST = 4.0
NUM_ORIGINAL, NUM_CROP = 500, 800  # those of a crop are forgotten at once, and it may show a small part only
CELLS = 6  # per side: each has the same right to be described, or one tree takes all features and the rest cannot be found
FAST_THRESHOLD = 7  # grey levels of the evened plane
EVEN_PX, EVEN_LEAST, EVEN_STD = 41, 2.0, 40.0  # square whose contrast becomes EVEN_STD grey levels; EVEN_LEAST are added to its own
XY_UNITS = 16  # per plane px, so that a coordinate fits 16 bits
BYTES_PER_FEATURE = 32 + 4 + 1


@dataclass(frozen=True)
class Description:
    """What is kept of a picture: ``n`` features, the best first.

    Attributes:
        codes: (n, 32) uint8, ORB's 256 bits (Rublee et al., ICCV 2011).
        points_xy: (n, 2) uint16, sixteenths of a plane pixel.
        turns: (n,) uint8, the direction of the patch, 256 to a full turn.
        step: original pixels per plane pixel.
    """

    codes: NDArray[np.uint8]
    points_xy: NDArray[np.uint16]
    turns: NDArray[np.uint8]
    step: float

    def __len__(self) -> int:
        return len(self.codes)

    def points_px(self) -> NDArray[np.float64]:
        """(n, 2) in pixels of the full picture."""
        return self.points_xy.astype(np.float64) * (self.step / XY_UNITS)

    def to_bytes(self) -> bytes:
        """The description as it travels between processes."""
        sink = io.BytesIO()
        np.savez(sink, codes=self.codes, points_xy=self.points_xy, turns=self.turns, step=np.float64(self.step))
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """The inverse of :meth:`to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return cls(file["codes"], file["points_xy"], file["turns"], float(file["step"]))


def describe(picture: Picture, count: int = NUM_ORIGINAL) -> Description:
    """At most ``count`` features of a picture, spread over all of it.  Cost: its reduced decode and about 15 ms.

    Raises:
        UnreadableImage: the picture cannot be decoded.
    """
    plane = picture.search_plane.resampled(max(picture.size_wh) / LONG_SIDE_PX)
    grey = plane.pixels if plane.pixels.dtype == np.uint8 else np.clip(plane.pixels, 0, 255).astype(np.uint8)
    zoom = min(max(1.0, LEAST_LONG_SIDE_PX / max(grey.shape)), ENLARGED_MOST)
    if zoom > 1:
        grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    grey = _evened(grey)
    orb = cv2.ORB_create(
        nfeatures=4 * count, scaleFactor=1.2, nlevels=9, edgeThreshold=16, patchSize=31, fastThreshold=FAST_THRESHOLD
    )
    points, codes = orb.detectAndCompute(grey, None)
    if codes is None:
        codes = np.zeros((0, 32), np.uint8)
    xy = np.array([p.pt for p in points], np.float64).reshape(-1, 2)  # (n, 2) enlarged plane px
    chosen = _spread(points, xy, grey.shape[::-1], count)
    turns = np.array([points[i].angle for i in chosen], np.float64) * (256 / 360)
    return Description(
        np.asarray(codes[chosen], np.uint8),
        np.round((xy[chosen] + 0.5) * XY_UNITS).astype(np.uint16),
        np.round(turns).astype(np.int64).astype(np.uint8),  # 360 degrees wrap to 0
        plane.step / zoom,
    )


def _evened(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same contrast everywhere (h, w): soft pictures have no corners otherwise, and dark parts of hard ones neither."""
    rest = grey.astype(np.float32)
    rest -= cv2.blur(rest, (EVEN_PX, EVEN_PX))
    contrast = np.sqrt(np.maximum(cv2.blur(rest * rest, (EVEN_PX, EVEN_PX)), 0))  # running sums end a little below 0
    return np.asarray(np.clip(rest * (EVEN_STD / (contrast + EVEN_LEAST)) + 128, 0, 255), np.uint8)


def _spread(points: tuple[cv2.KeyPoint, ...], xy: NDArray[np.float64], size_wh: tuple[int, int], count: int) -> NDArray[np.int64]:
    """The indices of at most ``count`` features: the best of every cell and octave, then their second best, and so on."""
    if not len(points):
        return np.zeros(0, np.int64)
    response = np.array([p.response for p in points])
    octave = np.array([p.octave for p in points])
    column, row = np.minimum(xy * CELLS / np.asarray(size_wh), CELLS - 1).astype(int).T
    cell = (row * CELLS + column) * 16 + octave
    order = np.lexsort((xy[:, 0], xy[:, 1], -response, cell))  # by cell, the best first; the place breaks ties
    starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    # coarse octaves have fewer features, and each tells as much: a rank counts by the area that a feature of its octave covers
    weighed = (rank + 1) * 1.2 ** (1.2 * octave[order])
    return np.asarray(order[np.lexsort((np.arange(len(order)), weighed))][:count], np.int64)
