"""Local displacement: by how much each tile of the crop would still like to move.

A crop moves as one piece.  Objects in a neighbouring frame of a burst, or the depth of a stereo twin, move tiles one by one.
One Lucas-Kanade step a tile: shift = inverse(sum of gradient products) * sum of gradient * difference, and its covariance is
the mean squared rest times the same inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, compose, growth, shifted
from cropreg.matching.plane import Pair, dot, warped
from cropreg.matching.verify import quantile

LEAST_MOVE_PX = 2  # plane px: a tile that is found nearer by lies where it should


@dataclass(frozen=True)
class Displacements:
    """Per tile (rows, columns): shift (rows, columns, 2) and its predicted error, in original pixels; infinite without texture."""

    shifts_px: NDArray[np.float64]
    sigmas_px: NDArray[np.float64]

    def without_stretch(self, stretch_px: NDArray[np.float64]) -> Displacements:
        """What is left beside a shift and a stretch in x and y: (2, 2), see :func:`common_stretch`."""
        u, v = _across(self.shifts_px.shape[1]), _across(self.shifts_px.shape[0])
        common = np.stack(
            np.broadcast_arrays(stretch_px[0, 0] + stretch_px[0, 1] * u, stretch_px[1, 0] + stretch_px[1, 1] * v[:, None]), -1
        )
        return Displacements(self.shifts_px - common, self.sigmas_px)


def _across(tiles: int) -> NDArray[np.float64]:
    """Where the tiles' centres lie, from -1 at one edge of the picture to 1 at the other."""
    return (2 * np.arange(tiles) + 1) / tiles - 1


@lru_cache(maxsize=128)
def _powers(tiles: int, reach: float) -> NDArray[np.float64]:
    """One, where the tiles' centres lie, ``reach`` at the edges, and its square: (tiles, 3)."""
    at = _across(tiles) * reach
    return np.stack([np.ones_like(at), at, at**2], 1)


def common_stretch(tiles: Displacements, which: NDArray[np.bool_], aspect: float, rounding_px: float) -> NDArray[np.float64]:
    """The shift and the growth towards the edges that most of the tiles ``which`` ask for, in x and in y: (2, 2) px.

    Outliers count less (Cauchy weights), so that a part that moved by itself is not explained away.  An export rounds each side, and no
    more: the two stretches are the same but for ``rounding_px`` at the right edge; ``aspect`` is the picture's width over its height.
    """
    rows, columns = np.nonzero(which)
    u, v = _across(which.shape[1])[columns], _across(which.shape[0])[rows]
    one, none = np.ones_like(u), np.zeros_like(u)
    design = np.concatenate([np.stack([one, u, none, none], 1), np.stack([none, none, one, v], 1)])  # (2 n, 4)
    shifts = tiles.shifts_px[which].T.ravel()
    base = np.tile(1 / (tiles.sigmas_px[which] ** 2 + 0.1**2), 2)
    same = np.array([0, 1, 0, -aspect])
    known = np.outer(same, same) / (rounding_px**2 + 1e-4) + 1e-9 * np.eye(4)
    weights = base
    for _ in range(4):
        weighted = design * weights[:, None]
        solution = np.linalg.solve(weighted.T @ design + known, weighted.T @ shifts)
        rest = np.abs(shifts - design @ solution)
        weights = base / (1 + (rest / max(0.1, 1.5 * quantile(rest, 0.5))) ** 2)
    return solution.reshape(2, 2)


def pull_at_edges(tiles: Displacements, which: NDArray[np.bool_], aspect: float) -> tuple[float, float]:
    """By how much the tiles ``which`` want the edges to move as a stretch in x, one in y, or a turn would; and its predicted error.

    The largest of the three, and the largest error, in px; ``aspect`` is the picture's width over its height.
    """
    rows, columns = _powers(which.shape[0], 1 / aspect), _powers(which.shape[1], 1.0)  # in halves of the width
    weights = which / (tiles.sigmas_px**2 + 1e-6)
    dx, dy = np.moveaxis(tiles.shifts_px, 2, 0)
    # Of x: a shift, a stretch and, against v, the turn; of y: a shift, a stretch and, with u, the turn.
    (n, a, aa), (b, ab, _), (bb, _, _) = (rows.T @ weights @ columns).tolist()
    (x, xu), (xv, _) = (rows[:, :2].T @ (weights * dx) @ columns[:, :2]).tolist()
    (y, yu), (yv, _) = (rows[:, :2].T @ (weights * dy) @ columns[:, :2]).tolist()
    normal = np.array([[n, 0, a, 0, -b], [0, n, 0, b, a], [a, 0, aa, 0, -ab], [0, b, 0, bb, ab], [-b, a, -ab, ab, aa + bb]])
    normal += 1e-9 * n * np.eye(5)
    regular, covariance = cv2.invert(normal, flags=cv2.DECOMP_CHOLESKY)  # a third of numpy's cost
    if not regular:
        return np.inf, np.inf
    pull = covariance @ (x, y, xu, yv, yu - xv)
    reach = np.array([1.0, 1 / aspect, max(1.0, 1 / aspect)])
    return float((np.abs(pull[2:]) * reach).max()), float((np.sqrt(np.diag(covariance)[2:]) * reach).max())


def lean(tiles: Displacements, which: NDArray[np.bool_], aspect: float) -> tuple[float, float]:
    """As :func:`pull_at_edges`, but outliers count less and the tiles' own disagreement makes the error: the pull, and how sure it is.

    The second is the most that one of the three is of its own error; about 1 where nothing pulls.
    """
    rows, columns = np.nonzero(which)
    u, v = _across(which.shape[1])[columns], _across(which.shape[0])[rows] / aspect
    one, none = np.ones_like(u), np.zeros_like(u)
    design = np.concatenate([np.stack([one, none, u, none, -v], 1), np.stack([none, one, none, v, u], 1)])  # (2 n, 5)
    shifts = tiles.shifts_px[which].T.ravel()
    base = np.tile(1 / (tiles.sigmas_px[which] ** 2 + 1e-6), 2)
    weights = base
    for _ in range(4):
        weighted = design * weights[:, None]
        normal = weighted.T @ design + 1e-9 * weights.sum() * np.eye(5)
        pull = np.linalg.solve(normal, weighted.T @ shifts)
        rest = np.abs(shifts - design @ pull) * np.sqrt(base)
        spread = max(1.0, quantile(rest, 0.5) / 0.6745)  # of a normal distribution half lies within
        weights = base / (1 + (rest / (2 * spread)) ** 2)
    errors = spread * np.sqrt(np.diag(np.linalg.inv(normal))[2:])
    reach = np.array([1.0, 1 / aspect, max(1.0, 1 / aspect)])
    return float((np.abs(pull[2:]) * reach).max()), float((np.abs(pull[2:]) / errors).max())


def displacements(pair: Pair, place: Affine, tiles_px: tuple[int, ...]) -> list[Displacements]:
    """Measures every tile, for each side of a tile in plane pixels.  Valid up to about one plane pixel.

    Cost: 0.8 ms for 100,000 plane pixels.
    """
    matrix = pair.matrix(place)
    target, moved = pair.target, pair.moved(matrix)
    gain = dot(moved, target) / (dot(moved, moved) + 1e-6)
    rest = cv2.addWeighted(target, 1.0, moved, -gain, 0.0)
    both = cv2.addWeighted(target, 0.5, moved, 0.5 * gain, 0.0)
    gx = cv2.Sobel(both, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    gy = cv2.Sobel(both, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    h, w = target.shape
    counts = [(max(1, w // tile_px), max(1, h // tile_px)) for tile_px in tiles_px]
    product, sums = both, []  # one array for all products: each of its own would cost more to ask for than to fill
    for a, b in ((gx, gx), (gx, gy), (gy, gy), (gx, rest), (gy, rest), (rest, rest)):
        product = cv2.multiply(a, b, dst=product)
        sums.append([_means(product, nx, ny) for nx, ny in counts])
    to_px = pair.step * growth(matrix)
    return [_solved([s[i] for s in sums], (w // nx) * (h // ny), to_px) for i, (nx, ny) in enumerate(counts)]


def shared_slope(pair: Pair, place: Affine) -> float:
    """How alike, from -1 to 1, the slopes of both pictures are along the direction in which the crop has least of them.

    Of lines, of what was blurred by motion and of tiny plain crops hardly any are left along it but noise, whose slopes the other
    picture does not have: then nothing tells where along it the crop lies, however well it fits and however small an error least squares
    predict.  (The aperture problem; the direction is that of the lesser eigenvalue in Shi and Tomasi, "Good Features to Track",
    CVPR 1994.)  Cost: 0.5 ms for 100,000 plane pixels.
    """
    slopes = [
        [cv2.Sobel(pixels, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=0.5) for dx in (1, 0)]
        for pixels in (pair.target, pair.moved(pair.matrix(place)))
    ]
    here, both, there = (np.array([[dot(g, h) for h in slopes[j]] for g in slopes[i]]) for i, j in ((0, 0), (0, 1), (1, 1)))
    least = np.linalg.eigh(here)[1][:, 0]
    return float(least @ both @ least / math.sqrt((least @ here @ least) * (least @ there @ least) + 1e-9))


def found_elsewhere(pair: Pair, place: Affine, tiles: NDArray[np.bool_], reach_share: float, least_ncc: float) -> int:
    """How many of the ``tiles`` (rows, columns) are found nearby, all of them moved by the same: what lies at another depth.

    They are looked for at whole plane pixels up to ``reach_share`` of the crop's long side away, and must correlate by ``least_ncc``
    there.  Cost: 0.2 ms a tile.
    """
    w, h = pair.grid.size_wh
    reach = max(4, round(max(w, h) * reach_share))
    wider = compose(pair.matrix(place), shifted(-reach, -reach))
    around_wh = w + 2 * reach, h + 2 * reach
    around = warped(pair.bands[0], wider, around_wh) if pair.bands else pair.band(warped(pair.original, wider, around_wh))
    tw, th = w // tiles.shape[1], h // tiles.shape[0]
    moves = []
    for row, column in np.argwhere(tiles).tolist():
        x, y = column * tw, row * th
        scores = cv2.matchTemplate(
            around[y : y + th + 2 * reach, x : x + tw + 2 * reach], pair.target[y : y + th, x : x + tw], cv2.TM_CCOEFF_NORMED
        )
        _, best, _, (dx, dy) = cv2.minMaxLoc(scores)
        if best >= least_ncc and max(abs(dx - reach), abs(dy - reach)) >= LEAST_MOVE_PX:
            moves.append((dx, dy))
    alike = [sum(max(abs(x - u), abs(y - v)) <= 1 for u, v in moves) for x, y in moves]
    return max(alike, default=0)


def _means(values: NDArray[np.float32], nx: int, ny: int) -> NDArray[np.float32]:
    """The means (ny, nx) over tiles; what does not fill one at the right and bottom is left out."""
    h, w = values.shape
    return np.asarray(cv2.resize(values[: h // ny * ny, : w // nx * nx], (nx, ny), interpolation=cv2.INTER_AREA), np.float32)


def _solved(means: list[NDArray[np.float32]], num_px: int, to_px: float) -> Displacements:
    """The shifts that products of gradients and differences, averaged over tiles of ``num_px`` pixels, ask for.

    ``to_px`` original pixels per plane pixel.
    """
    xx, xy, yy, bx, by, rr = np.array(means, np.float64).reshape(len(means), *np.atleast_2d(means[0]).shape) * num_px
    det = xx * yy - xy * xy
    flat = det < 1e-6 * (1 + xx * yy)
    det = np.where(flat, 1.0, det)
    dx, dy = (yy * bx - xy * by) / det, (xx * by - xy * bx) / det
    left = np.maximum(rr - dx * bx - dy * by, 0) / num_px + 0.02  # 0.02: rounding to whole grey levels, smoothed
    variance = np.where(flat, np.inf, left * (xx + yy) / det)  # of dx plus of dy
    # target(x) = original(x + d): the tile's content lies at d from where the place puts it
    return Displacements(np.stack([dx, dy], -1) * to_px, np.sqrt(variance) * to_px)
