"""Fine: full-size windows settle the last part of a pixel, and tell a neighbouring frame by what moved in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.place import Affine
from cropreg.matching.plane import Pair, Plane, deviation, warped
from cropreg.matching.register import register
from cropreg.matching.search import bands_map

STILL_PX = 0.02  # plane px; a shorter step moves nothing any more
MOST_COVERED = 0.1  # share of a window that may show something else
FIRST_LOOK = 6  # steps: from where the planes put it, a window needs 3 or 4


@dataclass(frozen=True)
class Window:
    """A small part of the crop, registered by a shift of its own.

    ``center_xy`` in crop pixels; ``shift_px`` (2,) in original pixels from where the starting place puts it; ``sigma_px`` its predicted
    error; ``rest`` = 1 - NCC**2, the share of the window that stays unexplained; ``pair`` its finest planes.
    """

    center_xy: NDArray[np.float64]
    shift_px: NDArray[np.float64]
    sigma_px: float
    rest: float
    pair: Pair

    @cached_property
    def energy(self) -> float:
        """The standard deviation of the band-passed window in grey levels: how much it shows."""
        return deviation(self.pair.target)

    @property
    def left(self) -> float:
        """The standard deviation of what stays unexplained of it, in grey levels."""
        return self.energy * max(self.rest, 0.0) ** 0.5

    def rest_at(self, place: Affine) -> float:
        """The unexplained share at another place."""
        ncc = register(self.pair, place, "shift", iterations=1, robust=False).ncc
        return 1.0 - max(ncc, 0.0) ** 2

    @cached_property
    def told_at(self) -> NDArray[np.float64]:
        """Where in the crop the shift in x (first row) and that in y are told: in the middle of the slopes in that direction.

        What a horizon tells of y holds for the horizon, wherever the window's centre is.
        """
        middles = []
        for dx in (1, 0):
            slopes = cv2.Sobel(self.pair.target, cv2.CV_32F, dx, 1 - dx, ksize=1)
            m = cv2.moments(cv2.multiply(slopes, slopes))
            middles.append(
                [m["m10"] / m["m00"], m["m01"] / m["m00"]] if m["m00"] > 0 else np.subtract(self.pair.grid.size_wh, 1) / 2
            )
        return np.add(self.pair.grid.shift_xy, (np.array(middles) + 0.5) * self.pair.grid.step_xy)

    def moved_by(self, start: Affine, place: Affine) -> NDArray[np.float64]:
        """The shift (2,) in original pixels from ``start`` to ``place``, each direction where it is told."""
        if np.array_equal(place[:, :2], start[:, :2]):  # the same everywhere: nothing to look for
            return np.asarray(place[:, 2] - start[:, 2], np.float64)
        return np.diagonal(places.apply(place, self.told_at) - places.apply(start, self.told_at))


Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in crop pixels, half-open


def choose_windows(
    crop: Plane, full_wh: tuple[int, int], window_px: int, per_side: int, unlike: NDArray[np.bool_] | None = None
) -> list[Rectangle]:
    """Places at most ``per_side``**2 windows where the crop's plane has corners, but not in tiles (rows, columns) known to be ``unlike``.

    Only corners fix a shift in both directions (Shi and Tomasi, CVPR 1994: the smaller eigenvalue of the gradient's covariance).
    """
    w, h = full_wh
    ww, wh = min(window_px, w), min(window_px, h)
    corner = cv2.cornerMinEigenVal(crop.pixels.astype(np.float32), 3)
    kx, ky = max(1, int(ww / crop.step_xy[0])), max(1, int(wh / crop.step_xy[1]))
    strength = cv2.blur(corner, (kx, ky), borderType=cv2.BORDER_CONSTANT)
    if unlike is not None and unlike.any():
        covered = cv2.blur(cv2.resize(unlike.astype(np.float32), crop.size_wh, interpolation=cv2.INTER_NEAREST), (kx, ky))
        strength[covered > MOST_COVERED] *= 1e-3  # for want of anything else
    pw, ph = crop.size_wh
    nx, ny = min(per_side, max(1, w // ww)), min(per_side, max(1, h // wh))
    windows = []
    for j in range(ny):
        for i in range(nx):
            x1, x2, y1, y2 = i * pw // nx, (i + 1) * pw // nx, j * ph // ny, (j + 1) * ph // ny
            _, _, _, (x, y) = cv2.minMaxLoc(strength[y1:y2, x1:x2])
            cx = crop.shift_xy[0] + (x1 + x + 0.5) * crop.step_xy[0]
            cy = crop.shift_xy[1] + (y1 + y + 0.5) * crop.step_xy[1]
            windows.append(window_at((cx, cy), window_px, full_wh))
    return windows


def window_at(center_xy: tuple[float, float], window_px: int, full_wh: tuple[int, int]) -> Rectangle:
    """The window about a centre in crop pixels, moved inside the crop."""
    (w, h), (cx, cy) = full_wh, center_xy
    ww, wh = min(window_px, w), min(window_px, h)
    left, top = int(np.clip(cx - ww / 2, 0, w - ww)), int(np.clip(cy - wh / 2, 0, h - wh))
    return left, top, left + ww, top + wh


def apart(rectangles: list[Rectangle]) -> list[Rectangle]:
    """Leaves out windows that mostly repeat an earlier one: what they say counts once."""
    kept: list[Rectangle] = []
    for x1, y1, x2, y2 in rectangles:
        if not any(2 * abs(x1 - k[0]) < x2 - x1 and 2 * abs(y1 - k[1]) < y2 - y1 for k in kept):
            kept.append((x1, y1, x2, y2))
    return kept


def register_windows(
    original: Plane, crop: Plane, place: Affine, *, rectangles: list[Rectangle], smooth_px: float, band_px: int, iterations: int,
    reach_px: float, least_ncc: float, clear_ncc: float, most_sigma_px: float,
) -> list[Window]:  # fmt: skip
    """Registers each window within about ``reach_px`` original pixels, both planes full-size; leaves out those that say nothing.

    One that correlates by ``clear_ncc`` beside the place is not looked for farther off.
    """
    scale = places.scale(place)
    step = max(1.0, 1 / scale)  # original pixels per working pixel: the coarser of both
    reach = max(1, round(reach_px / step))
    edge = band_px // 2  # what a pair band-passed before the warp leaves out
    margin, (w, h) = math.ceil(edge * step * scale), crop.size_wh
    result = []
    for x1, y1, x2, y2 in rectangles:
        corners = places.apply(place, np.array([[x1, y1], [x2, y1], [x1, y2], [x2, y2]], np.float64))
        low = np.floor(corners.min(0) - reach_px - (4 + edge) * step).astype(int).clip(0)
        high = np.minimum(np.ceil(corners.max(0) + reach_px + (4 + edge) * step).astype(int), original.size_wh)
        if (high - low).min() < 8 * step:
            continue
        part_o = original.window(*low, *high).resampled(step).smoothed(smooth_px)
        part_c = crop.window(max(0, x1 - margin), max(0, y1 - margin), min(w, x2 + margin), min(h, y2 + margin))
        part_c = part_c.resampled(step * scale).smoothed(smooth_px)
        if min(part_c.size_wh) < 12 + 2 * edge:
            continue
        pair = Pair.banded(part_o, part_c, part_o.band_passed(band_px), part_c.band_passed(band_px), band_px)
        # Not robustly: a window of which a part is painted over is outvoted by the other windows.
        look = partial(register, pair, model="shift", robust=False, tolerance_px=STILL_PX)
        fit = look(place, iterations=min(iterations, FIRST_LOOK))
        if fit.step_px > STILL_PX or fit.ncc < clear_ncc:  # what is not there may be near
            nearby = _nearby(pair, place, reach)
            if fit.step_px > STILL_PX or np.abs(nearby - fit.place)[:, 2].max() > step:
                fit = look(nearby, iterations=iterations)
        center = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
        shift = places.apply(fit.place, center[None])[0] - places.apply(place, center[None])[0]
        near = np.abs(shift).max() <= reach_px + 2 * step
        if fit.converged and near and fit.ncc >= least_ncc and fit.sigma_px <= most_sigma_px * step:
            result.append(Window(center, shift, fit.sigma_px, 1.0 - fit.ncc**2, pair))
    return result


def _nearby(pair: Pair, place: Affine, reach: int) -> Affine:
    """The place moved by whole plane pixels, at most ``reach`` each way, to where the band-passed crop correlates best."""
    assert pair.bands, "windows are band-passed before the warp"
    w, h = pair.grid.size_wh
    matrix = pair.matrix(place)
    wider = places.compose(matrix, places.shifted(-reach, -reach))
    around = warped(pair.bands[0], wider, (w + 2 * reach, h + 2 * reach))
    _, _, _, (x, y) = cv2.minMaxLoc(bands_map(around, pair.target))
    return pair.place(places.compose(matrix, places.shifted(x - reach, y - reach)))


def common_shift(windows: list[Window]) -> tuple[NDArray[np.float64], float]:
    """The shift (2,) in original pixels that most windows agree on, and its predicted error."""
    shifts = np.array([w.shift_px for w in windows])  # (n, 2)
    weights = np.array([1 / (w.sigma_px**2 + 0.02**2) for w in windows])
    middle = _weighted_median(shifts, weights)
    left = np.abs(shifts - middle).max(1)
    weights = weights * (left <= max(0.3, 3 * float(np.median(left))))
    return (shifts * weights[:, None]).sum(0) / weights.sum(), float(1 / np.sqrt(weights.sum()))


def spread_px(windows: list[Window]) -> float:
    """The error of a common shift as the windows' disagreement tells it: their median deviation over the root of their number."""
    shifts = np.array([w.shift_px for w in windows])
    return float(np.median(np.abs(shifts - np.median(shifts, 0)).max(1)) / len(windows) ** 0.5)


def distances_px(windows: list[Window], start: Affine, place: Affine) -> NDArray[np.float64]:
    """How far (n,) in original px each window lies from where ``place`` puts it."""
    return np.hypot(*np.transpose([w.shift_px - w.moved_by(start, place) for w in windows]))


def common_place(windows: list[Window], place: Affine, aspect_px: float, telling_rest: float) -> Affine:
    """The place corrected by a shift, a scale for each axis and an angle that explain most windows' shifts.

    The two scales of the answer differ by a normal error of ``aspect_px`` original pixels at the edge of the windows: an export rounds
    each side; 0 makes them one.
    Windows that leave more than ``telling_rest`` unexplained are asked only if hardly another one is left: noise fits noise anywhere.
    """
    telling = [w for w in windows if w.rest < telling_rest]
    windows = telling if len(telling) >= 3 else windows
    told = np.array([w.told_at for w in windows])  # (n, 2, 2)
    shifts = np.array([w.shift_px for w in windows])
    base = 1 / (np.array([w.sigma_px for w in windows]) ** 2 + 0.02**2)
    middle = told.mean((0, 1))
    radius = max(float(np.abs(told - middle).max()), 1.0)
    (ux, vx), (uy, vy) = ((told - middle) / radius).transpose(1, 2, 0)  # where x is told, and where y is
    one, none = np.ones(len(ux)), np.zeros(len(ux))
    rows = np.concatenate([np.stack([one, none, ux, none, -vx], 1), np.stack([none, one, none, vy, uy], 1)])  # (2n, 5)
    target = shifts.T.ravel()
    scale_x, scale_y = places.scales(place)
    apart = np.array([0, 0, 1, -1, 0])  # with how much the scales of the place differ already
    asked = apart * (1 / scale_y - 1 / scale_x) * radius / (aspect_px**2 + 1e-6)
    prior = np.outer(apart, apart) / (aspect_px**2 + 1e-6) + np.eye(5) * 1e-9
    weights = np.tile(base, 2)
    solution = np.zeros(5)
    for _ in range(5):
        a = rows * weights[:, None]
        solution = np.linalg.solve(np.einsum("ni,nj->ij", rows, a) + prior, np.einsum("ni,n->i", a, target) + asked)
        rest = target - np.einsum("ni,i->n", rows, solution)
        size = max(0.05, 1.5 * float(np.median(np.abs(rest))))
        weights = np.tile(base, 2) / (1 + (rest / size) ** 2)
    dx, dy, stretch_x, stretch_y, turn = solution
    linear = np.array([[stretch_x, -turn], [turn, stretch_y]]) / radius
    shift = np.array([dx, dy]) - linear @ middle
    return np.hstack([place[:, :2] + linear, place[:, 2:] + shift[:, None]])


def moved_windows(windows: list[Window], start: Affine, place: Affine, least_px: float, least_ratio: float) -> int:
    """Counts windows whose content lies elsewhere: at least ``least_px`` away, where it fits ``least_ratio`` times better.

    A window that fits about as well at the common place has not moved, whatever its own minimum.
    """
    moved = 0
    for window in windows:
        left_px = np.hypot(*(window.shift_px - window.moved_by(start, place)))
        if left_px >= least_px and window.rest_at(place) > least_ratio * (window.rest + 0.01):
            moved += 1
    return moved


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted median of each column of (n, k)."""
    result = []
    for column in values.T:
        order = np.argsort(column, kind="stable")
        half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        result.append(column[order][min(int(half), len(column) - 1)])
    return np.array(result)
