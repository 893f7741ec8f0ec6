"""Planes: grey pictures at any resolution that know which part of the full picture each of their pixels covers.

Reduced decodes, pyramids and windows are all planes, so no stage does arithmetic on offsets of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, compose, invert, moved_within

_TO_CORNER: Affine = np.array([[1, 0, 0.5], [0, 1, 0.5]], np.float64)  # from a pixel's index to the corner coordinate of its centre
ONE_THREAD = 2**18  # multiplications of a product of matrices up to which BLAS takes one thread, and so rounds alike everywhere
PIECE_PX = 8192  # pixels of one product of vectors or thin matrices up to which it does so, too
EDGE_PX = 2  # plane px; a Gaussian of 0.9 px reaches so far
_TO_CENTER: Affine = np.array([[1, 0, -0.5], [0, 1, -0.5]], np.float64)


@dataclass(frozen=True)
class Plane:
    """Grey pixels (h, w), uint8 or float32; full-size coordinate = shift + step * plane coordinate, both pixel corners.

    >>> plane = Plane(np.zeros((4, 6), np.uint8), (8.0, 8.0), (0.0, 0.0))
    >>> plane.window(2, 1, 5, 4).shift_xy
    (16.0, 8.0)
    """

    pixels: NDArray[np.uint8] | NDArray[np.float32]
    step_xy: tuple[float, float] = (1.0, 1.0)
    shift_xy: tuple[float, float] = (0.0, 0.0)

    @property
    def size_wh(self) -> tuple[int, int]:
        """(width, height) in plane pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def step(self) -> float:
        """Full-size pixels per plane pixel, the mean of both axes."""
        return (self.step_xy[0] + self.step_xy[1]) / 2

    @property
    def center_xy(self) -> tuple[float, float]:
        """The plane's centre in full-size coordinates."""
        w, h = self.size_wh
        return self.shift_xy[0] + w * self.step_xy[0] / 2, self.shift_xy[1] + h * self.step_xy[1] / 2

    @property
    def to_full(self) -> Affine:
        """The map from plane coordinates to full-size coordinates."""
        return np.array([[self.step_xy[0], 0, self.shift_xy[0]], [0, self.step_xy[1], self.shift_xy[1]]], np.float64)

    def window(self, x1: int, y1: int, x2: int, y2: int) -> Plane:
        """The part between plane pixels (a view)."""
        x, y = self.shift_xy[0] + x1 * self.step_xy[0], self.shift_xy[1] + y1 * self.step_xy[1]
        return Plane(self.pixels[y1:y2, x1:x2], self.step_xy, (x, y))

    def reduced(self, factor: int) -> Plane:
        """Averages whole cells of ``factor`` x ``factor`` pixels; what does not fill a cell at the right and bottom is left out."""
        if factor == 1:
            return self
        w, h = (n // factor for n in self.size_wh)
        pixels = self.pixels[: h * factor, : w * factor]
        if whole_numbers := pixels.dtype == np.uint8 and factor in (4, 8):  # halvings cost a third of one step
            for _ in range(factor // 4):
                pixels = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
            pixels = pixels.astype(np.float32)  # rounded twice, smooth pictures would drown in it
        pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
        if whole_numbers:
            pixels = cv2.convertScaleAbs(pixels)
        return Plane(pixels, (self.step_xy[0] * factor, self.step_xy[1] * factor), self.shift_xy)

    def resampled(self, step: float) -> Plane:
        """Shrinks the plane to about ``step`` full-size pixels per pixel; never enlarges.

        Far ones leave out what does not fill a cell at the right and bottom, as :meth:`reduced` does.
        """
        if step < self.step * 1.02:
            return self
        whole = round(step / self.step)
        if abs(whole * self.step - step) < 0.002 * step and min(self.size_wh) >= whole:
            return self.reduced(whole)  # 40 times cheaper than a factor that is not whole
        halved = 2 ** max(0, math.floor(math.log2(step / self.step)) - 1)
        if halved > 1 and min(self.size_wh) >= halved:  # most of the way in halvings, which cost next to nothing
            return self.reduced(halved).resampled(step)
        w, h = (max(1, round(n * s / step)) for n, s in zip(self.size_wh, self.step_xy, strict=True))
        pixels = cv2.resize(self.pixels, (w, h), interpolation=cv2.INTER_AREA)
        return Plane(pixels, (self.step_xy[0] * self.size_wh[0] / w, self.step_xy[1] * self.size_wh[1] / h), self.shift_xy)

    def smoothed(self, sigma_px: float) -> Plane:
        """A float32 copy behind a Gaussian of ``sigma_px`` plane pixels."""
        kernel = cv2.getGaussianKernel(2 * math.ceil(4 * sigma_px) + 1, sigma_px, cv2.CV_32F)
        pixels = np.asarray(cv2.sepFilter2D(self.pixels, cv2.CV_32F, kernel, kernel), np.float32)  # half of GaussianBlur's cost
        return Plane(pixels, self.step_xy, self.shift_xy)

    def band_passed(self, width_px: int) -> Plane:
        """A float32 copy without the mean of a square of ``width_px`` plane pixels."""
        return Plane(band_pass(self.pixels, width_px), self.step_xy, self.shift_xy)


def between(original: Plane, crop: Plane, place: Affine) -> Affine:
    """The place as a map from pixel *centres* of the crop's plane to pixel centres of the original's plane, as cv2 wants it."""
    return compose(_TO_CENTER, compose(invert(original.to_full), compose(place, compose(crop.to_full, _TO_CORNER))))


def from_between(original: Plane, crop: Plane, matrix: Affine) -> Affine:
    """The inverse of :func:`between`: a place from a map between pixel centres of two planes."""
    plane_corners = compose(_TO_CORNER, compose(matrix, _TO_CENTER))
    return compose(original.to_full, compose(plane_corners, invert(crop.to_full)))


def band_pass(pixels: NDArray[np.generic], width_px: int) -> NDArray[np.float32]:
    """Takes away the mean of a square of ``width_px``: slow changes of tone, vignettes and shading hardly remain."""
    floats = pixels.astype(np.float32, copy=False)
    means = cv2.blur(floats, (width_px, width_px))
    return np.subtract(floats, means, out=means)


def band_pass_part(pixels: NDArray[np.generic], width_px: int) -> NDArray[np.float32]:
    """:func:`band_pass` of pixels that were cut out of a picture, which goes on beyond the border as the outermost lines do.

    Mirrored there, every slope would have an edge, and all parts of skies the same frame.
    """
    floats, edge = pixels.astype(np.float32, copy=False), width_px // 2
    h, w = floats.shape
    if h * w * max(h, w) <= ONE_THREAD:  # a fifth of the cost
        return np.asarray(floats - _means_of(h, width_px) @ floats @ _means_of(w, width_px).T, np.float32)
    wider = cv2.copyMakeBorder(floats, edge, edge, edge, edge, cv2.BORDER_REFLECT_101)
    _go_on(wider, edge)
    _go_on(wider.T, edge)
    return floats - cv2.blur(wider, (width_px, width_px))[edge : h + edge, edge : w + edge]


def _go_on(lines: NDArray[np.float32], edge: int) -> None:
    """Turns the mirrored first and last ``edge`` lines about where the line of least squares through those next to them begins."""
    inside = lines[edge : len(lines) - edge]
    depth = min(2 * edge + 1, len(inside))
    at = np.arange(depth) - (depth - 1) / 2
    weights = (1 / depth + at[0] * at / max(1.0, at @ at)).astype(np.float32)
    first, last = weights @ inside[:depth], weights[::-1] @ inside[-depth:]
    lines[:edge] = 2 * first - lines[:edge]
    lines[len(lines) - edge :] = 2 * last - lines[len(lines) - edge :]


@lru_cache(maxsize=512)
def _means_of(num: int, width_px: int) -> NDArray[np.float32]:
    """The matrix (num, num) that makes of values the means of ``width_px`` of them, as they go on beyond both ends."""
    edge = width_px // 2
    lines = cv2.copyMakeBorder(np.eye(num, dtype=np.float32), edge, edge, 0, 0, cv2.BORDER_REFLECT_101)
    _go_on(lines, edge)
    return np.stack([lines[i : i + width_px].mean(0, dtype=np.float32) for i in range(num)])


def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The sum of the products of two arrays of the same shape, at a third of ``einsum``'s cost; the same for any number of threads."""
    a, b = a.ravel(), b.ravel()
    total = a[:PIECE_PX] @ b[:PIECE_PX]
    for start in range(PIECE_PX, a.size, PIECE_PX):
        total += a[start : start + PIECE_PX] @ b[start : start + PIECE_PX]
    return float(total)


def deviation(pixels: NDArray[np.generic]) -> float:
    """The standard deviation of (h, w) pixels; five times as fast as numpy's."""
    return float(cv2.meanStdDev(pixels)[1][0, 0])


def warped(original: Plane, matrix: Affine, size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """Samples the original's plane on the crop's grid (h, w), linearly, the edge repeated outside.

    Linear, since ``INTER_CUBIC`` (A = -0.75) biases a registration by up to 0.35 px; both planes are smoothed before.  A plain shift
    goes through ``getRectSubPix``, which costs a tenth of a warp.
    """
    (a, b, x), (c, d, y) = matrix.tolist()
    w, h = size_wh
    if max(abs(a - 1), abs(b), abs(c), abs(d - 1)) * max(w, h) < 1e-3:
        pixels = original.pixels if original.pixels.dtype == np.float32 else original.pixels.astype(np.float32)
        return cv2.getRectSubPix(pixels, (w, h), (x + (w - 1) / 2, y + (h - 1) / 2))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(original.pixels, matrix, size_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Pair:
    """An original's and a crop's plane, smoothed and of about the same resolution, ready to be laid over each other.

    Normally the band-pass comes after the warp.  Of large crops both are band-passed before (``bands``), which saves most of the work;
    the crop's border, where the mean of the square looked beyond the crop, is then left out.  ``band_px`` 0 takes away only the mean
    of the whole: plain tones are compared.  Otherwise ``mirrored`` says what is assumed to lie beyond the border.  A mirror makes an
    edge of every slope of tone: a crop as it was cut shares that with its original, an edited one does not, and is seen through
    :func:`band_pass_part`.
    """

    original: Plane
    crop: Plane
    band_px: int
    bands: tuple[Plane, Plane] | None = None
    mirrored: bool = True

    @staticmethod
    def banded(
        original: Plane, crop: Plane, original_band: Plane, crop_band: Plane, band_px: int, *, mirrored: bool = True
    ) -> Pair:
        """A pair whose planes were band-passed whole; the crop's border is cut off here."""
        (w, h), edge = crop_band.size_wh, band_px // 2
        return Pair(original, crop, band_px, (original_band, crop_band.window(edge, edge, w - edge, h - edge)), mirrored)

    @property
    def edge_px(self) -> int:
        """How much of the crop's border is left out: smoothing has mirrored it there, where the original goes on."""
        return 0 if self.bands else min(EDGE_PX, min(self.crop.size_wh) // 20)

    @cached_property
    def grid(self) -> Plane:
        """The part of the crop's plane on whose pixels everything is compared."""
        if self.bands:
            return self.bands[1]
        (w, h), edge = self.crop.size_wh, self.edge_px
        return self.crop.window(edge, edge, w - edge, h - edge)

    @property
    def step(self) -> float:
        """Original pixels per pixel of the original's plane."""
        return self.original.step

    @cached_property
    def template(self) -> list[tuple[NDArray[np.float32], NDArray[np.float64], float]]:
        """What registering a shift has made of the crop alone; empty before."""
        return []

    @cached_property
    def target(self) -> NDArray[np.float32]:
        """The band-passed crop (h, w)."""
        return np.ascontiguousarray(self.bands[1].pixels if self.bands else self._inside(self.band(self.crop.pixels)), np.float32)

    def moved(self, matrix: Affine) -> NDArray[np.float32]:
        """The band-passed original on the crop's grid (h, w); ``matrix`` as from :func:`between` with :attr:`grid`."""
        if self.bands:
            return warped(self.bands[0], matrix, self.grid.size_wh)
        wider = moved_within(matrix, -self.edge_px, -self.edge_px)
        return self._inside(self.band(warped(self.original, wider, self.crop.size_wh)))

    def reduced(self, factor: int) -> Pair:
        """The same at less resolution, band-passed after the warp."""
        return Pair(self.original.reduced(factor), self.crop.reduced(factor), self.band_px, mirrored=self.mirrored)

    def band(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Pixels of the crop's grid, band-passed."""
        if not self.band_px:
            floats = pixels.astype(np.float32, copy=False)
            return floats - np.float32(cv2.mean(floats)[0])
        return (band_pass if self.mirrored else band_pass_part)(pixels, self.band_px)

    def _inside(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        edge = self.edge_px
        return pixels[edge : pixels.shape[0] - edge, edge : pixels.shape[1] - edge]

    def matrix(self, place: Affine) -> Affine:
        """The place as a map between pixel centres of the two planes."""
        outer, inner = self._ends
        return compose(outer, compose(place, inner))

    def place(self, matrix: Affine) -> Affine:
        """The inverse of :meth:`matrix`."""
        outer, inner = self._ends
        return compose(invert(outer), compose(matrix, invert(inner)))

    @cached_property
    def _ends(self) -> tuple[Affine, Affine]:
        """From pixels of the original to pixel centres of its plane, and from those of the grid to pixels of the crop."""
        return compose(_TO_CENTER, invert(self.original.to_full)), compose(self.grid.to_full, _TO_CORNER)
