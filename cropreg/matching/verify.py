"""Verify: is what lies at a place really the crop?  Tile by tile, since a peak of one correlation is no evidence."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, moved_within
from cropreg.matching.plane import Pair, dot, warped

UNLIKE_NCC = 0.5  # correlation of a tile below which it shows something else, and
LEAST_SHOWN = 0.1  # its variance over the mean one, below which that is said of no tile


@dataclass(frozen=True)
class Evidence:
    """What a comparison of crop and original at one place saw.

    ``score`` is the plain NCC of the whole, ``band`` that of the band-passed pictures, ``median`` and ``low`` the median and 20%
    quantile of the NCC of textured tiles, ``tiles`` their number, ``textured`` their share of all tiles, ``inside`` the share of the
    crop that lies inside the original, ``energy`` the standard deviation of the band-passed crop in grey levels.
    """

    score: float
    band: float
    median: float
    low: float
    tiles: int
    textured: float
    inside: float
    energy: float
    gain: float
    tile_ncc: NDArray[np.float32]  # (rows, columns), NaN where there is no texture
    shown: NDArray[np.float64]  # (rows, columns), the variance that both show there: none if one is painted over with one tone

    @property
    def unlike(self) -> NDArray[np.bool_]:
        """The tiles (rows, columns) in which both pictures show something, and not the same."""
        return (self.tile_ncc < UNLIKE_NCC) & (self.shown > LEAST_SHOWN * self.shown.mean())

    @property
    def unlike_share(self) -> float:
        """The share of the texture that is in such tiles."""
        return float(self.shown[self.unlike].sum() / max(self.shown.sum(), 1e-6))


def verify(pair: Pair, place: Affine, *, most_tiles: int, least_tile_px: int, noise: float, weak: float = 0.0) -> Evidence:
    """Compares the two planes of a pair at a place.

    A tile counts as untextured if it deviates less than ``noise`` grey levels, or than the share ``weak`` of the whole crop.
    Cost: 1 ms for 100,000 plane pixels.
    """
    w, h = pair.grid.size_wh
    matrix = pair.matrix(place)
    target, moved = pair.target, pair.moved(matrix)
    target_raw = pair.crop.pixels
    edge_x, edge_y = ((n - inner) / 2 for n, inner in zip(pair.crop.size_wh, (w, h), strict=True))
    moved_raw = warped(pair.original, moved_within(matrix, -edge_x, -edge_y), pair.crop.size_wh)
    nx, ny = (min(most_tiles, max(1, n // least_tile_px)) for n in (w, h))
    tw, th = w // nx, h // ny

    whole = (target, moved, target * target, moved * moved, target * moved)
    parts = (values[: th * ny, : tw * nx] for values in whole)
    mt, mm, tt, mm2, tm = np.array([cv2.resize(part, (nx, ny), interpolation=cv2.INTER_AREA) for part in parts], np.float64)
    vt, vm, cov = tt - mt**2, mm2 - mm**2, tm - mt * mm
    floor = max(noise**2, weak**2 * float(vt.mean()))
    textured = (vt > floor) | (vm > floor)
    ncc = np.where(textured, cov / np.sqrt(np.maximum(vt, floor / 16) * np.maximum(vm, floor / 16)), np.nan)
    some = ncc[textured]
    all_cov, all_t, all_m = float(tm.mean()), float(tt.mean()), float(mm2.mean())
    gain = all_cov / max(all_m, 1e-6)
    return Evidence(
        score=zero_mean_ncc(moved_raw, target_raw),  # type: ignore[arg-type]
        band=all_cov / max((all_t * all_m) ** 0.5, 1e-6),
        median=quantile(some, 0.5) if some.size else 0.0,
        low=quantile(some, 0.2) if some.size else 0.0,
        tiles=some.size,
        textured=some.size / ncc.size,
        inside=inside_share(pair.original.size_wh, matrix, (w, h)),
        energy=all_t**0.5,
        gain=gain,
        tile_ncc=ncc.astype(np.float32),
        shown=np.where(textured, np.minimum(vt, gain**2 * vm), 0.0),
    )


def quantile(values: NDArray[np.float64], share: float) -> float:
    """As ``numpy.quantile`` of (n,) values, which takes a tenth of a millisecond to start."""
    ordered, place = np.sort(values), share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def zero_mean_ncc(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Zero-mean normalised cross-correlation of two pictures of the same size, in [-1, 1]; 0 when one of them is flat."""
    a, b = a - np.float32(cv2.mean(a)[0]), b - np.float32(cv2.mean(b)[0])
    aa, bb, ab = dot(a, a), dot(b, b), dot(a, b)
    return ab / (aa * bb) ** 0.5 if aa > 1e-3 * a.size and bb > 1e-3 * b.size else 0.0


def inside_share(original_wh: tuple[int, int], matrix: Affine, crop_wh: tuple[int, int]) -> float:
    """The share of the crop's width or height that lies inside the original, the smaller of both."""
    shares = []
    for (a, b, at), length in zip(matrix.tolist(), original_wh, strict=True):
        reach_x, reach_y = a * crop_wh[0], b * crop_wh[1]
        low = at + 0.5 - (a + b) / 2 + min(0.0, reach_x) + min(0.0, reach_y)
        high = low + abs(reach_x) + abs(reach_y)
        shares.append((min(high, length) - max(low, 0.0)) / (high - low))
    return min(1.0, max(0.0, min(shares)))
