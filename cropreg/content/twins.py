"""Twins: of two originals that both show a crop, from which one was it cut?  Asked of what differs between the two."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Plane, band_pass, between, warped

WINDOW_PX, LEAST_WINDOW_PX, WINDOWS_PER_SIDE = 128, 40, 5  # of the crop: 400,000 pixels are enough
BAND_PX = 25  # slower changes are tone and vignette
LEAST_DIFFERENCE = 0.05  # grey levels; below this two files hold the same pixels
SURE = 0.1, 1.0  # coefficients on either side that tell: 0.5 is expected, less of a softened crop, more of a sharpened one
SURE_ERRORS = 5.0  # standard errors from the middle; of 307 right signs 250 lay beyond, the 7 wrong ones below 2.3
LEAST_WINDOWS = 4
LEAST_GAIN = 0.05  # of the crop's contrast over the mean's
MOST_WEIGHT = 4.0  # of a window, times the median: one thing that moved must not decide alone
LARGE_SHARE = 0.1  # energy of the difference over that of the mean above which the mean is no picture of either
CLEAR_RATIO = 2.0  # unexplained energy over that of the other, in such a window


def nearer(first: Picture, first_match: Match, second: Picture, second_match: Match, crop: Picture) -> int:
    """-1 when the crop was clearly cut from ``first``, 1 when from ``second``, 0 when that cannot be told.

    With a and b the two originals laid over the crop c, m their mean and d = b - a: c - m is -d/2 plus something that knows nothing of
    d if c was cut from a, and +d/2 plus that if it was cut from b.  So the coefficient of d in a regression is -0.5 or +0.5, however large
    the noise that both share.  What editors and small errors of the place do to m (tone, shift, turn, scale, sharpness) is fitted beside
    it.  A window in which a and b are different pictures counts for the one that leaves less of c unexplained.
    """
    assert first_match.scale is not None and second_match.scale is not None
    grid = Plane(crop.full()).resampled(min(first_match.scale, second_match.scale))
    a, b = (_laid(p, m, crop, grid) for p, m in ((first, first_match), (second, second_match)))
    c = grid.pixels.astype(np.float32)
    windows = _windows(grid.size_wh)
    estimates = [e for w in windows if (e := _coefficient(a[w], b[w], c[w]))]
    if len(estimates) < LEAST_WINDOWS:
        return 0
    values, weights = np.array(estimates).T
    weights = np.minimum(weights, MOST_WEIGHT * np.median(weights))
    mean = float(np.average(values, weights=weights))
    spread = float(np.average((values - mean) ** 2, weights=weights))
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    degrees = max(effective - 1, 1.0)
    error = float(np.sqrt(spread / degrees)) * (1 + 4 / degrees)  # few windows do not know their error
    if not SURE[0] < abs(mean) < SURE[1] or abs(mean) < SURE_ERRORS * error:
        return 0
    return -1 if mean < 0 else 1


def _laid(original: Picture, match: Match, crop: Picture, grid: Plane) -> NDArray[np.float32]:
    """The original on a grid of the crop (h, w): sampled twice as densely and averaged, which blurs less than one linear sample."""
    assert match.box is not None and match.scale is not None
    place = places.from_box(match.box, crop.size_wh, match.angle_deg or 0.0)
    whole = Plane(original.full())
    if match.scale == 1 and not match.angle_deg:
        return warped(whole, between(whole, grid, place), grid.size_wh)
    w, h = grid.size_wh
    dense = Plane(np.zeros((0, 0), np.uint8), (grid.step_xy[0] / 2, grid.step_xy[1] / 2), grid.shift_xy)
    whole = whole.resampled(0.5 / match.scale)
    moved = warped(whole, between(whole, dense, place), (2 * w, 2 * h))
    return np.asarray(cv2.resize(moved, (w, h), interpolation=cv2.INTER_AREA))


def _windows(size_wh: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of windows spread evenly over a plane; smaller ones on a small plane, so that they are at least four."""
    sides = []
    for n in size_wh:
        side = min(n, max(LEAST_WINDOW_PX, min(WINDOW_PX, n // 2)))
        starts = np.linspace(0, n - side, max(1, min(WINDOWS_PER_SIDE, n // side)))
        sides.append([slice(round(float(at)), round(float(at)) + side) for at in starts])
    return [(rows, columns) for rows in sides[1] for columns in sides[0]]


def _coefficient(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> tuple[float, float] | None:
    """The coefficient of the difference in one window, and its weight: the energy of that difference which nothing else explains."""
    mean = (a + b) / 2
    own = _inner(band_pass(mean, BAND_PX))
    crop, change = _inner(band_pass(c, BAND_PX)), _inner(band_pass(b - a, BAND_PX))
    energy = float(change @ change)
    if energy > LARGE_SHARE * float(own @ own):
        rests = [_unexplained(p, crop[:, None]) for p in (a, b)]
        first, second = (float((r * r).sum()) for r in rests)
        if max(first, second) > CLEAR_RATIO * min(first, second):
            return -0.5 if first < second else 0.5, energy
    gain = float(own @ crop) / (float(own @ own) + 1e-9)
    if energy < LEAST_DIFFERENCE**2 * len(change) or gain <= LEAST_GAIN:
        return None
    difference, rest = _unexplained(mean, np.stack([change, crop], 1)).T
    energy = float(difference @ difference)
    if energy < LEAST_DIFFERENCE**2 * len(difference):
        return None
    return float(difference @ rest) / energy / gain, energy


def _unexplained(picture: NDArray[np.floating], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of each target (n, k) beside a picture (h, w) that was moved, toned, vignetted, softened or sharpened a little."""
    middle = band_pass(picture, BAND_PX)
    gx, gy = (cv2.Sobel(middle, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    gxx, gxy, gyy = (cv2.Sobel(middle, cv2.CV_32F, *order) for order in ((2, 0), (1, 1), (0, 2)))
    h, w = middle.shape
    x, y = np.meshgrid(np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32))
    place = [gx, gy, x * gx, y * gx, x * gy, y * gy, gxx - gyy, gxy]
    light = picture / 128 - 1
    tone = [band_pass(light**2, BAND_PX), band_pass(light**3, BAND_PX), x * middle, y * middle, (x * x + y * y) * middle]
    sharp = [middle - band_pass(picture, n) for n in (3, 5, 11)]
    columns = [_inner(k) for k in (middle, *place, *tone, *sharp)]
    design = np.stack([*(k / (np.abs(k).max() + 1e-9) for k in columns), np.ones_like(columns[0])], 1)  # (n, 18)
    ridge = np.eye(design.shape[1]) * (1e-9 * len(design))
    return np.asarray(targets - design @ np.linalg.solve(design.T @ design + ridge, design.T @ targets))


def _inner(pixels: NDArray[np.floating]) -> NDArray[np.float64]:
    """The pixels (n,) without the border, where derivatives know nothing."""
    return pixels[2:-2, 2:-2].ravel().astype(np.float64)
