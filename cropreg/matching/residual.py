"""Residual: what a crop shows that neither the original at its place nor the loss of the crop's own file explains.

Two exposures or scans of one thing show the same scene, but never the same noise, and each file has its own JPEG artefacts.  A crop that
was cut from the original has both in common with it.  What it has not is what its own JPEG has rounded away, and that can be foretold:
transform what the original lets expect, and round it to the steps of the crop's file.  In 37 turned crops what is left over is at most
1.1 times that, in 71 crops of another scan at least 1.4 times, in neighbouring frames at least 3 times.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching import place as places
from cropreg.matching.follow import around
from cropreg.matching.place import Affine, compose, shifted
from cropreg.matching.plane import Plane, between, warped
from cropreg.matching.verify import quantile

BLOCK = 8  # of JPEG
WINDOW_PX, WINDOWS = 64, 4
GRIDS = (2, 5)  # windows a side: the finer grid is asked where too many of the first windows are clipped
LEAST_PX = 24
SHARE = 0.25  # the quantile of the windows that counts: an object painted over, or a stamp, does not
LOWEST, HIGHEST = 2, 7  # sum of the horizontal and vertical number: below lie slopes of tone, above nothing that JPEG keeps
ROUNDING = 0.25  # grey levels squared: both files' rounding to whole numbers, and that of an editor between them
MISFIT = 0.003  # share of the picture's own energy: how well a few kernels stand for the one an editor has used
DARK, BRIGHT, MOST_CLIPPED = 4, 251, 0.05  # clipped tones have lost what would be compared
PAD_PX = 2
LEAST_STEP, COARSER = 3.0, 1.3  # of an earlier JPEG: finer ones leave what rounding leaves; times the file's own
MOST_LOOKED_AT = 16  # windows
LEAST_FAR, SURELY, ALIKE = 3, 16, 0.6  # coefficients that are not nought: wanted, and no chance; the mean cosine of their phases
FEW = 0.05  # share of them that may be wrong
LEAST_COMBS = 4  # coefficients of a block that must surely show it
NOUGHT = 1.5  # grey levels; what rounding leaves of coefficients that are nought
RIDGE = 1e-4
BLURS_PX = (1.5, 3.0)  # for crops that were sharpened or softened
KERNELS = (cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)  # any other lies between
SOFTNESS = (0.25, 0.4, 0.6)  # crop px; Gaussians that stand for the kernels of shrinking

_NUMBERS = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
_ASKED = (_NUMBERS >= LOWEST) & (_NUMBERS <= HIGHEST)
_COSINES = np.cos(np.outer(np.arange(BLOCK), 2 * np.arange(BLOCK) + 1) * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
_COSINES[0] /= np.sqrt(2)  # the orthonormal DCT-II that JPEG uses (ITU-T T.81, A.3.3)


def unexplained(
    original: Plane, crop: Plane, place: Affine, steps: NDArray[np.float64], colours: Sequence[Plane] = ()
) -> float | None:
    """The energy of what the original does not explain of the crop, over what the crop's own file explains; about 1 for true crops.

    In each of four windows that are not clipped the crop is regressed on the original, sampled by several kernels and shifted by a
    pixel, its blurs, and slopes and curves of tone, which stand for what an editor may have done.

    Args:
        original, crop: full-size planes.
        place: of the crop.
        steps: (8, 8) quantisation steps of the crop's file, nought where nothing was rounded away, infinite where everything was.
        colours: more planes of the original, at any resolution, of which the crop's tones may be mixed.

    Returns:
        None if the crop is too small, or clipped everywhere.  Cost: 4 ms.
    """
    size = min(WINDOW_PX, min(crop.size_wh) // BLOCK * BLOCK)
    if size < LEAST_PX:
        return None
    found = []
    for left, top in _corners(crop.size_wh, size):
        window = crop.window(left, top, left + size, top + size)
        if _clipped(window.pixels):
            continue
        expected = _expected(original, window, compose(place, shifted(left, top)), colours)
        if expected is None:
            continue
        lost = _coefficients(expected)
        left_over = _coefficients(window.pixels.astype(np.float32) - expected)
        energy = (lost**2).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = np.where(steps > 0, lost - np.where(np.isinf(steps), 0.0, steps * np.round(lost / steps)), 0.0)
        explained = (lost**2).mean(0) + ROUNDING + MISFIT * energy
        found.append(float(((left_over**2).mean(0) / explained)[_ASKED].mean()))
        if len(found) == WINDOWS:
            break
    return quantile(np.array(found), SHARE) if found else None


def coarser_steps(crop: Plane, steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The steps (8, 8) of an earlier JPEG whose blocks lie where the file's own would: saved twice, or saved as PNG later.

    Its coefficients still lie about multiples of its steps (Fan and de Queiroz, "Identification of Bitmap Compression History: JPEG
    Detection and Quantizer Estimation", IEEE Transactions on Image Processing 12(2), 2003).  Infinite where all are nought.

    Args:
        crop: full-size plane.
        steps: (8, 8) of the file itself, nought where nothing was rounded away.

    Returns:
        None if nothing tells of such an earlier file.  Cost: 20 ms.
    """
    size = min(WINDOW_PX, min(crop.size_wh) // BLOCK * BLOCK)
    windows = [crop.window(x, y, x + size, y + size).pixels for x, y in _corners(crop.size_wh, size)[:MOST_LOOKED_AT]]
    seen = np.concatenate(
        [_coefficients(pixels.astype(np.float32)) for pixels in windows if not _clipped(pixels)] or [np.empty((0, 8, 8))]
    )
    found, sure = steps.copy(), 0
    for row, column in np.argwhere(_ASKED):
        values, own = seen[:, row, column], steps[row, column]
        step, count = _comb(values, max(LEAST_STEP, COARSER * own))
        if step:
            found[row, column] = step
            sure += count >= SURELY
        elif len(values) and np.abs(values).max() < NOUGHT:
            found[row, column] = np.inf
    return found if sure >= LEAST_COMBS else None


def _comb(values: NDArray[np.float64], least: float) -> tuple[float, int]:
    """The step from ``least`` about whose multiples values (n,) lie best, and how many of them are not nought; (0, 0) if they do not."""
    values = values[np.abs(values) > NOUGHT]
    if len(values) < LEAST_FAR:
        return 0.0, 0
    candidates = np.arange(np.ceil(least), quantile(np.abs(values), FEW) + NOUGHT)  # between nought and a step lies nothing
    if not len(candidates):
        return 0.0, 0
    alike = np.cos(2 * np.pi * values / candidates[:, None]).mean(1)
    best = int(alike.argmax())
    return (float(candidates[best]), len(values)) if alike[best] > ALIKE else (0.0, 0)


def _corners(size_wh: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Left and top of windows evenly over the crop, on the grid of JPEG's blocks, in the order in which they are asked."""
    corners: dict[tuple[int, int], None] = {}
    for count in GRIDS:
        xs, ys = ([int((n - size) * (i + 0.5) / count) // BLOCK * BLOCK for i in range(count)] for n in size_wh)
        corners.update(dict.fromkeys((x, y) for y in ys for x in xs))
    return list(corners)


def _expected(original: Plane, window: Plane, place: Affine, colours: Sequence[Plane]) -> NDArray[np.float32] | None:
    """What the original lets expect in a window of the crop (size, size); None if that is clipped."""
    size = window.size_wh[0]
    wider = compose(place, shifted(-PAD_PX, -PAD_PX))
    padded = (size + 2 * PAD_PX,) * 2
    part = around(original, wider, padded, 20)
    matrix = between(part, Plane(window.pixels), wider)
    scale = places.scale(place)
    pixels = part.pixels.astype(np.float32)
    if scale < 0.95:
        sources = [(cv2.GaussianBlur(pixels, (0, 0), soft / scale), cv2.INTER_CUBIC) for soft in SOFTNESS]
    else:
        whole = np.abs(matrix - np.round(matrix)).max() < 1e-6
        sources = [(pixels, kernel) for kernel in (KERNELS[:1] if whole else KERNELS)]
    sampled = [
        cv2.warpAffine(source, matrix, padded, flags=kernel | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
        for source, kernel in sources
    ]
    inside = slice(PAD_PX, PAD_PX + size)
    tone = sampled[-1][inside, inside]
    if _clipped(tone):
        return None
    near = [slice(PAD_PX + by, PAD_PX + by + size) for by in (-1, 0, 1)]
    neighbours = [values[rows, columns] for values in sampled for rows in near for columns in near]
    blurred = [cv2.GaussianBlur(sampled[-1], (0, 0), sigma)[inside, inside] for sigma in BLURS_PX]
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    curves = [tone * x, tone * y, tone**2, tone**3, x, y]
    mixed = [warped(plane, between(plane, Plane(window.pixels), place), window.size_wh) for plane in colours]
    mixed += [tone * values for values in mixed]
    known = np.stack([np.ravel(values) for values in (*neighbours, *blurred, *curves, *mixed)]).astype(np.float32)
    known -= known.mean(1, keepdims=True)
    known /= np.sqrt((known**2).mean(1, keepdims=True)) + 1e-3
    target = window.pixels.astype(np.float32).ravel()
    mean = target.mean()
    normal = (known @ known.T).astype(np.float64) + RIDGE * target.size * np.eye(len(known))
    weights = np.linalg.solve(normal, (known @ (target - mean)).astype(np.float64))
    return (weights.astype(np.float32) @ known + mean).reshape(size, size)


def _clipped(tones: NDArray[np.uint8] | NDArray[np.float32]) -> bool:
    return bool(((tones < DARK) | (tones > BRIGHT)).mean() > MOST_CLIPPED)


def _coefficients(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The DCT of (size, size) grey levels: (blocks, 8, 8)."""
    n = pixels.shape[0] // BLOCK
    blocks = (pixels - np.float32(128)).reshape(n, BLOCK, n, BLOCK).transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)
    return np.asarray(_COSINES @ blocks @ _COSINES.T)
