"""Register: moves a place until the two planes agree (Lucas-Kanade), and predicts how far off it still is.

Inverse compositional alignment (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 56(3), 2004): the gradient is the crop's and is
computed once.  Both pictures are band-passed *after* the warp, and a gain is fitted each time, so that edits of tone matter little.
The predicted error is that of least squares: covariance = mean squared residual * inverse Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, compose, growth, invert, moved_within, without_shear
from cropreg.matching.plane import PIECE_PX, Pair, dot

MODELS = {"shift": 2, "turn": 3, "scale": 3, "similarity": 4, "free": 5}
"""Number of parameters: a shift, with an angle, with one scale, with both, with two scales and an angle."""


ROBUST_PX = 0.3  # plane px; a step shorter than this is near enough for outliers to stand out
MOST_REWEIGHTED = 3  # times the weights are made anew
KEPT_PX = 2**16  # pixels of a crop's plane up to which what follows from it alone is kept for the next candidate
PATIENCE = 4  # steps after which a place that is right looks so; see ``least_ncc``
COARSE_ITERATIONS = 8  # a coarse level only has to come within a pixel of the next


@dataclass(frozen=True)
class Fit:
    """A registered place.

    ``ncc`` is the band-passed correlation, ``residual`` the mean squared band-passed difference after the gain divided by the
    variance of the crop, ``sigma_px`` the predicted standard deviation of the worst box edge in full-size original pixels,
    ``step_px`` the last step in plane pixels.
    """

    place: Affine
    ncc: float
    residual: float
    sigma_px: float
    converged: bool
    model: str
    step_px: float = np.inf


def register(
    pair: Pair,
    place: Affine,
    model: str,
    *,
    iterations: int,
    robust: bool = True,
    tolerance_px: float = 0.01,
    least_ncc: float = 0.02,
) -> Fit:
    """Moves ``place`` within ``model`` until a step is shorter than ``tolerance_px`` plane pixels (its error is then a tenth of that).

    Gives up where the pictures do not correlate at all, or after a few steps still by less than ``least_ncc``.

    Robust: differences count less the larger they are (Cauchy weights), so that a painted-over object does not pull.
    Cost for 100,000 plane pixels: 0.4 ms an iteration where the scale was kept, 1.8 ms elsewhere.
    """
    grid = pair.grid
    w, h = grid.size_wh
    target = pair.target
    descent, plain, energy = _template(pair, model)
    matrix = pair.matrix(place)
    weighted, hessian = descent, np.eye(MODELS[model])
    residual = np.empty_like(target)
    ncc, step_px, reweighted, done = 0.0, np.inf, 0, 0
    for done in range(iterations):
        moved = pair.moved(matrix)
        product, own = dot(moved, target), dot(moved, moved) + 1e-6
        ncc = product / (own * energy) ** 0.5
        if ncc <= (least_ncc if done >= PATIENCE else 0.02):
            break
        np.multiply(moved, np.float32(product / own), out=residual)
        residual -= target
        outside = _outside(pair.original.size_wh, matrix, (w, h))
        # Far off, all differences are large and none an outlier; close by, weights hardly change any more.
        if robust and step_px < ROBUST_PX and reweighted < MOST_REWEIGHTED:
            spread = cv2.norm(residual, cv2.NORM_L1) / residual.size
            weight = np.square(residual * np.float32(1 / (3.0 * spread + 1e-6)))
            weight += 1
            weighted = descent / weight.ravel()
            plain = _normal(weighted, descent)
            reweighted += 1
        masked, hessian = weighted, plain.copy()
        if outside is not None:
            masked = weighted * outside.ravel()
            hessian = _normal(masked, descent)
        slope = np.einsum("in,n->i", masked, residual.ravel()).astype(np.float64)
        if model == "free":
            _hold_aspect(hessian, slope, pair, matrix, residual)
        delta = _solved(hessian, slope)
        matrix = _stepped(matrix, delta, (w, h), model)
        step_px = max(map(abs, delta))
        if (step_px < tolerance_px and (reweighted or not robust)) or step_px > max(w, h):
            break
    squared = dot(residual, residual) / residual.size if ncc > 0.02 or done else 0.0
    sigma = np.inf
    if ncc > 0.02:
        sigma = math.sqrt(squared * _edge_variance(hessian, model)) * pair.step * growth(matrix)
    # Planes have slightly different steps in x and y, so that a turn of one plane shears the place.
    place = pair.place(matrix) if model == "shift" else without_shear(pair.place(matrix), grid.center_xy, stretched=model == "free")
    return Fit(place, ncc, squared * target.size / energy, sigma, step_px < 0.1, model, step_px)


def _template(pair: Pair, model: str) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
    """What only depends on the crop: the steepest descent, its normal equations and the crop's energy.

    Kept for shifts, of which several are tried on the same planes.
    """
    if model == "shift" and pair.template:
        return pair.template[0]
    target = pair.target
    descent = _steepest_descent(target, model)
    template = descent, _normal(descent, descent), dot(target, target) + 1e-6
    if model == "shift" and target.size <= KEPT_PX:
        pair.template.append(template)
    return template


def _normal(weighted: NDArray[np.float32], descent: NDArray[np.float32]) -> NDArray[np.float64]:
    """The matrix of the normal equations (parameters, parameters), never singular."""
    if len(descent) == 2:  # three products of vectors are half the cost of one of matrices
        (wx, wy), (x, y) = weighted, descent
        xx, xy, yy = dot(wx, x), dot(wx, y), dot(wy, y)
        ridge = 1e-9 * (xx + yy) + 1e-9
        return np.array([[xx + ridge, xy], [xy, yy + ridge]])
    hessian = np.zeros((len(descent), len(descent)))
    for start in range(0, descent.shape[1], PIECE_PX):
        piece = slice(start, start + PIECE_PX)
        hessian += weighted[:, piece] @ descent[:, piece].T
    hessian.flat[:: len(hessian) + 1] += 1e-9 * hessian.trace() + 1e-9
    return hessian


def _solved(hessian: NDArray[np.float64], slope: NDArray[np.float64]) -> list[float]:
    """What solves the normal equations; written out for a shift, which is asked most."""
    if len(slope) > 2:
        return np.linalg.solve(hessian, slope).tolist()
    (a, b), (c, d) = hessian.tolist()
    x, y = slope.tolist()
    det = a * d - b * c
    return [(d * x - b * y) / det, (a * y - c * x) / det]


def coarse_to_fine(
    pair_at: Callable[[int], Pair], levels: Sequence[int], place: Affine, model: str, *, iterations: int, least_ncc: float = 0.02
) -> Fit:
    """Registers on ever finer pairs, ``pair_at(level)`` of each level down to 0; stops at the first where the pictures do not look alike.

    Only the finest is fitted robustly and to the end.  Pairs are made when they are needed, since most candidates fall early.
    """
    fit = Fit(place, 0.0, np.inf, np.inf, False, model)
    end_px = 0.02 if model == "shift" else 0.01  # shifts are rounded to whole pixels, or told by windows
    for level in levels:
        last = level == levels[-1]
        steps = iterations if last else min(iterations, COARSE_ITERATIONS)
        next_fit = register(
            pair_at(level),
            fit.place,
            model,
            iterations=steps,
            robust=last,
            tolerance_px=end_px if last else 0.1,
            least_ncc=least_ncc,
        )
        if next_fit.ncc <= least_ncc:
            return replace(fit, ncc=next_fit.ncc, converged=False)
        fit = next_fit
    return fit


def _hold_aspect(
    hessian: NDArray[np.float64], slope: NDArray[np.float64], pair: Pair, matrix: Affine, residual: NDArray[np.float32]
) -> None:
    """Adds to the normal equations what is known beforehand: an export rounds each side to whole pixels, and no more.

    The two scales differ by a normal error of half a crop pixel in the shorter side; without this, a picture whose texture runs in one
    direction leaves the other scale to chance.
    """
    w, h = pair.grid.size_wh
    (a, b, _), (c, d, _) = pair.place(matrix).tolist()
    ratio = np.log(np.hypot(a, c) / np.hypot(b, d))
    row = np.array([0, 0, 2 / w, -2 / h, 0])
    known = 0.5 / min(w * pair.grid.step_xy[0], h * pair.grid.step_xy[1])
    weight = (dot(residual, residual) / residual.size + 1e-3) / known**2
    hessian += weight * np.outer(row, row)
    slope += weight * row * ratio


def _steepest_descent(target: NDArray[np.float32], model: str) -> NDArray[np.float32]:
    """The change of the crop (parameters, pixels) when each parameter grows by one plane pixel at the crop's edge."""
    h, w = target.shape
    rows = np.empty((MODELS[model], h, w), np.float32)
    gx = cv2.Sobel(target, cv2.CV_32F, 1, 0, dst=rows[0], ksize=1, scale=0.5)
    gy = cv2.Sobel(target, cv2.CV_32F, 0, 1, dst=rows[1], ksize=1, scale=0.5)
    if model != "shift":
        u = ((np.arange(w, dtype=np.float32) - (w - 1) / 2) / (w / 2))[None, :]
        v = ((np.arange(h, dtype=np.float32) - (h - 1) / 2) / (h / 2))[:, None]
        aspect = np.float32(h / w)
        if model != "turn":
            np.multiply(gx, u, out=rows[2])
        if model == "free":
            np.multiply(gy, v, out=rows[3])
        elif model != "turn":
            rows[2] += gy * (v * aspect)
        if model != "scale":
            np.multiply(gy, u, out=rows[-1])
            rows[-1] -= gx * (v * aspect)
    return rows.reshape(len(rows), h * w)


def _stepped(matrix: Affine, delta: list[float], size_wh: tuple[int, int], model: str) -> Affine:
    """``matrix`` behind the inverse of the small warp of the crop's grid, about its centre, that ``delta`` stands for."""
    if model == "shift":
        return moved_within(matrix, -delta[0], -delta[1])
    w, h = size_wh
    stretch_x = stretch_y = turn = 0.0
    if model == "free":
        stretch_x, stretch_y, turn = delta[2] / (w / 2), delta[3] / (h / 2), delta[4] / (w / 2)
    elif model == "turn":
        turn = delta[2] / (w / 2)
    else:
        stretch_x = stretch_y = delta[2] / (w / 2)
        turn = delta[3] / (w / 2) if model == "similarity" else 0.0
    x, y = (w - 1) / 2, (h - 1) / 2
    warp = np.array(
        [[1 + stretch_x, -turn, delta[0] - stretch_x * x + turn * y], [turn, 1 + stretch_y, delta[1] - turn * x - stretch_y * y]]
    )
    return compose(matrix, invert(warp))


def _edge_variance(hessian: NDArray[np.float64], model: str) -> float:
    """The largest variance of a box edge, in crop plane pixels squared, for residuals of variance 1."""
    if model == "shift":
        (a, b), (_, d) = hessian.tolist()
        return float(max(a, d) / max(a * d - b * b, 1e-30))
    edges = _edge_rows(model)
    return max(0.0, float((edges @ np.linalg.inv(hessian) * edges).sum(1).max()))


@lru_cache(maxsize=len(MODELS))
def _edge_rows(model: str) -> NDArray[np.float64]:
    """How each box edge moves with the parameters (4, parameters), in crop plane pixels."""
    shift = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float64)
    side = np.array([-1.0, -1.0, 1.0, 1.0])
    if model == "turn":
        return np.hstack([shift, np.zeros((4, 1))])
    if model != "free":
        return np.hstack([shift, side[:, None], np.zeros((4, MODELS[model] - 3))])
    stretch = np.zeros((4, 2))
    stretch[0, 0], stretch[1, 1], stretch[2, 0], stretch[3, 1] = -1, -1, 1, 1
    return np.hstack([shift, stretch, np.zeros((4, 1))])


def _outside(original_wh: tuple[int, int], matrix: Affine, crop_wh: tuple[int, int]) -> NDArray[np.float32] | None:
    """Weights (h, w) that are 0 where the warp reads outside the original; None if it does so by less than a pixel anywhere."""
    w, h = crop_wh
    (a, b, x), (c, d, y) = matrix.tolist()
    xs = [x, x + a * (w - 1), x + b * (h - 1), x + a * (w - 1) + b * (h - 1)]
    ys = [y, y + c * (w - 1), y + d * (h - 1), y + c * (w - 1) + d * (h - 1)]
    if min(xs) > -1 and min(ys) > -1 and max(xs) < original_wh[0] and max(ys) < original_wh[1]:
        return None
    ones = np.ones((original_wh[1], original_wh[0]), np.uint8)
    mask = cv2.warpAffine(ones, matrix, crop_wh, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1).astype(np.float32)
