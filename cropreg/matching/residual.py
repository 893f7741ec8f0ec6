"""Residual: what a crop shows that neither the original at its place nor the loss of the crop's own file explains.

Two exposures or scans of one thing show the same scene, but never the same noise, and each file has its own JPEG artefacts.  A crop that
was cut from the original has both in common with it.  What it has not is what its own JPEG has rounded away, and what that leaves open is
known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box
from cropreg.matching import place as places
from cropreg.matching.follow import around
from cropreg.matching.place import Affine, compose, shifted
from cropreg.matching.plane import Plane, between
from cropreg.matching.rounding import BLOCK, coefficients, earlier_steps, excess
from cropreg.matching.verify import quantile

WINDOW_PX, WINDOWS = 64, 4
GRIDS = (2, 5)  # windows a side: the finer grid is asked where too many of the first windows are clipped
LEAST_PX = 24
SHARE = 0.25  # the quantile of the windows that counts: an object painted over, or a stamp, does not
DARK, BRIGHT, MOST_CLIPPED = 4, 251, 0.05  # clipped tones have lost what would be compared
PAD_PX, AROUND_PX = 2, 20
MOST_LOOKED_AT = 16  # windows
BLURS_PX = (1.5, 3.0)  # for crops that were sharpened or softened
KERNELS = (cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)  # any other lies between, but for averages over the area of a pixel
WHOLE_PX = 0.25  # original px by which the corners of a crop may miss whole ones that such averages begin at
SHRUNK = 0.95  # scale below which an editor's kernel averages
SOFTNESS = (0.25, 0.4, 0.6)  # crop px; Gaussians that stand for the kernels of shrinking


def unexplained(
    original: Plane,
    crop: Plane,
    place: Affine,
    steps: NDArray[np.float64],
    corner_xy: tuple[int, int] = (0, 0),
    colours: Sequence[Plane] = (),
    *,
    enough: float = 0.0,
) -> float | None:
    """The variance of what neither the original nor the crop's own file explains, over what must be allowed for; about 1 for true crops.

    In each of four windows that are not clipped the crop is regressed on the original, sampled by several kernels and shifted by a
    pixel, its blurs, and slopes and curves of tone, which stand for what an editor may have done.

    Args:
        original, crop: full-size planes.
        place: of the crop.
        steps: (8, 8) quantisation steps of the crop's file, nought where nothing was rounded away, infinite where everything was.
        corner_xy: where the first of its whole blocks begins.
        colours: more planes of the original, at any resolution, of which the crop's tones may be mixed.
        enough: windows below this are not looked at closer.

    Returns:
        None if the crop is too small, or clipped everywhere.  Cost: 4 ms, and as much again for a crop that is not below ``enough``.
    """
    size, exact = _window_px(crop, corner_xy), _enlarged_from(place, crop.size_wh)
    found = []
    for left, top in _corners(crop.size_wh, size, corner_xy):
        window = crop.window(left, top, left + size, top + size)
        if _clipped(window.pixels):
            continue
        moved = shifted(left, top)
        known = _known(original, window, compose(place, moved), None if exact is None else compose(exact, moved), colours)
        value = None if known is None else excess(known, window.pixels, steps, enough)  # type: ignore[arg-type]
        if value is not None:
            found.append(value)
        if len(found) == WINDOWS:
            break
    return quantile(np.array(found), SHARE) if found else None


def coarser_steps(crop: Plane, steps: NDArray[np.float64], corner_xy: tuple[int, int] = (0, 0)) -> NDArray[np.float64] | None:
    """The steps (8, 8) of an earlier JPEG whose blocks lie where the file's own would: saved twice, or saved as PNG later.

    Args:
        crop: full-size plane.
        steps: (8, 8) of the file itself, nought where nothing was rounded away.
        corner_xy: where the first of its whole blocks begins.

    Returns:
        See :func:`earlier_steps`.  Cost: 20 ms.
    """
    size = _window_px(crop, corner_xy)
    corners = _corners(crop.size_wh, size, corner_xy)[:MOST_LOOKED_AT]
    windows = [crop.window(x, y, x + size, y + size).pixels for x, y in corners]
    seen = [coefficients(pixels.astype(np.float32)) for pixels in windows if not _clipped(pixels)]
    return earlier_steps(np.concatenate(seen or [np.empty((0, BLOCK * BLOCK), np.float32)]), steps)


def _window_px(crop: Plane, corner_xy: tuple[int, int]) -> int:
    """The side of a window, whole blocks; 0 where the crop is too small."""
    size = min(WINDOW_PX, min(n - first for n, first in zip(crop.size_wh, corner_xy, strict=True)) // BLOCK * BLOCK)
    return size if size >= LEAST_PX else 0


def _corners(size_wh: tuple[int, int], size: int, corner_xy: tuple[int, int]) -> list[tuple[int, int]]:
    """Left and top of windows evenly over the crop, on the grid of JPEG's blocks, in the order in which they are asked."""
    corners: dict[tuple[int, int], None] = {}
    for count in GRIDS if size else ():
        xs, ys = (
            [first + int((n - first - size) * (i + 0.5) / count) // BLOCK * BLOCK for i in range(count)]
            for n, first in zip(size_wh, corner_xy, strict=True)
        )
        corners.update(dict.fromkeys((x, y) for y in ys for x in xs))
    return list(corners)


def _enlarged_from(place: Affine, crop_wh: tuple[int, int]) -> Affine | None:
    """The place of an enlarged crop, its corners moved to the whole pixels that it was enlarged from; None if they lie elsewhere.

    Averages over areas jump where a pixel ends, so the place must be as exact as the editor's.
    """
    if places.scale(place) <= 1 / SHRUNK:
        return None
    exact = places.from_box(Box(*map(round, places.to_box(place, crop_wh))), crop_wh)
    return exact if places.distance_px(exact, place, crop_wh) < WHOLE_PX else None


def _known(
    original: Plane, window: Plane, place: Affine, exact: Affine | None, colours: Sequence[Plane]
) -> NDArray[np.float32] | None:
    """What the original tells of a window of the crop (k, size * size), each of mean 0 and variance 1; None if that is clipped."""
    size = window.size_wh[0]
    inside = slice(PAD_PX, PAD_PX + size)
    sampled = _sampled(original, window, place)
    if exact is not None:
        sampled.insert(0, _by_area(original, window, exact))
    tone = sampled[-1][inside, inside]
    if _clipped(tone):
        return None
    near = [slice(PAD_PX + by, PAD_PX + by + size) for by in (-1, 0, 1)]
    mixed = [_sampled(plane, window, place) for plane in colours]
    neighbours = [values[rows, columns] for values in itertools.chain(sampled, *mixed) for rows in near for columns in near]
    blurred = [cv2.GaussianBlur(sampled[-1], (0, 0), sigma)[inside, inside] for sigma in BLURS_PX]
    x = np.tile(np.linspace(-1, 1, size, dtype=np.float32), (size, 1))
    squared = tone * tone
    curves = [tone * x, tone * x.T, squared, squared * tone, x, x.T]
    curves += [tone * values[-1][inside, inside] for values in mixed]
    known = np.stack([np.ravel(values) for values in (*neighbours, *blurred, *curves)]).astype(np.float32)
    known -= known.mean(1, keepdims=True)
    known /= np.sqrt((known**2).mean(1, keepdims=True)) + 1e-3
    return known


def _sampled(plane: Plane, window: Plane, place: Affine) -> list[NDArray[np.float32]]:
    """A plane on the grid of a window of the crop and ``PAD_PX`` round it, by each kernel that an editor may have used."""
    part, matrix, padded = _grid(plane, window, place)
    pixels, scale = part.pixels.astype(np.float32), places.scale(place)
    if scale < SHRUNK:
        sources = [(cv2.GaussianBlur(pixels, (0, 0), soft / scale / plane.step), cv2.INTER_CUBIC) for soft in SOFTNESS]
    else:
        whole = np.abs(matrix - np.round(matrix)).max() < 1e-6
        sources = [(pixels, kernel) for kernel in (KERNELS[:1] if whole else KERNELS)]
    return [
        np.asarray(cv2.warpAffine(source, matrix, padded, flags=kernel | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE))
        for source, kernel in sources
    ]


def _by_area(plane: Plane, window: Plane, place: Affine) -> NDArray[np.float32]:
    """As :func:`_sampled`, enlarged as OpenCV's ``INTER_AREA`` does: each pixel is the average over its own area."""
    part, matrix, padded = _grid(plane, window, place)
    weights = []
    for n, count, step, first in zip(part.size_wh, padded, matrix.diagonal(), matrix[:, 2], strict=True):
        sides = np.arange(n + 1, dtype=np.float64)
        sides[[0, -1]] = -np.inf, np.inf
        low = (first + step * np.arange(count) + 0.5 - step / 2)[:, None]
        covered = np.minimum(low + step, sides[1:]) - np.maximum(low, sides[:-1])
        weights.append((np.maximum(covered, 0) / step).astype(np.float32))
    return np.asarray(weights[1] @ part.pixels.astype(np.float32) @ weights[0].T, np.float32)


def _grid(plane: Plane, window: Plane, place: Affine) -> tuple[Plane, Affine, tuple[int, int]]:
    """A part of a plane about a window of the crop, the map to it from the window's grid and ``PAD_PX`` round it, and its size."""
    wider = compose(place, shifted(-PAD_PX, -PAD_PX))
    padded = (window.size_wh[0] + 2 * PAD_PX, window.size_wh[1] + 2 * PAD_PX)
    part = around(plane, wider, padded, AROUND_PX)
    return part, between(part, Plane(window.pixels), wider), padded


def _clipped(tones: NDArray[np.uint8] | NDArray[np.float32]) -> bool:
    return bool(((tones < DARK) | (tones > BRIGHT)).mean() > MOST_CLIPPED)
