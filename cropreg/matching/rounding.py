"""Rounding: what a file's steps leave open.  A rounded coefficient is known to lie within half a step, and nothing else is known of it.

What an original lets expect is therefore held against intervals (a regression on interval-censored data): a difference inside says
nothing, one outside the more the farther off.  So the noise of another scan shows at qualities whose rounding is several times as strong.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from cropreg.matching.verify import quantile

BLOCK = 8  # of JPEG
LOWEST, HIGHEST = 2, 7  # sum of the horizontal and vertical number: below lie slopes of tone, above nothing that JPEG keeps
ROUNDING = 0.25  # grey levels squared: both files' rounding to whole numbers, and that of an editor between them
MISFIT = 0.003  # share of the picture's own energy: how well a few kernels stand for the one an editor has used
SNAPPED = 2.0  # steps from which a coefficient tells the multiple it was: rounding to whole grey levels moves it by 0.3
LEAST_INTERVAL = 0.5  # of a coefficient that was not rounded; any that is small will do
LEAST_POWER, MOST_POWER = -2, 6  # of 2: between them the summit of the likelihood is looked for
LEAST_LIKELY = 1e-12
TIMES = 40  # by when what is expected of turned crops of JPEG 15 has come to rest
RIDGE = 1e-4
MOST_LOGITS = 60.0
LEAST_STEP, COARSER = 3.0, 1.3  # of an earlier JPEG: finer ones leave what rounding leaves; times the file's own
LEAST_FAR, SURELY, ALIKE = 3, 16, 0.6  # coefficients that are not nought: wanted, and no chance; the mean cosine of their phases
FEW = 0.05  # share of them that may be wrong
LEAST_COMBS = 4  # coefficients of a block that must surely show it
NOUGHT = 1.5  # grey levels; what rounding leaves of coefficients that are nought
UNLIKE, MOSTLY = 0.05, 0.8  # share by which a step may differ from the usual one, and share of steps that may not
USUAL = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], np.float64)  # fmt: skip
"""The steps of luma that most encoders scale by their quality (ITU-T T.81, table K.1)."""

_NUMBERS = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
ASKED = (_NUMBERS >= LOWEST) & (_NUMBERS <= HIGHEST)
_COSINES = np.cos(np.outer(np.arange(BLOCK), 2 * np.arange(BLOCK) + 1) * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
_COSINES[0] /= np.sqrt(2)  # the orthonormal DCT-II that JPEG uses (ITU-T T.81, A.3.3)
_WAVES = np.einsum("ui,vj->uvij", _COSINES, _COSINES).reshape(BLOCK * BLOCK, BLOCK * BLOCK).astype(np.float32)


def coefficients(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The DCT of grey levels (..., size, size), the sides multiples of 8: (..., blocks, 64)."""
    *more, size, _ = pixels.shape
    n = size // BLOCK
    blocks = pixels.reshape(*more, n, BLOCK, n, BLOCK).swapaxes(-3, -2).reshape(*more, n * n, BLOCK * BLOCK)
    return np.asarray(blocks @ _WAVES.T, np.float32)


def excess(known: NDArray[np.float32], window: NDArray[np.uint8], steps: NDArray[np.float64], enough: float) -> float | None:
    """The variance of what ``known`` does not explain of a crop's window, over what rounding and an unknown kernel leave.

    At first the window is regressed on ``known`` as it is.  But where rounding has left nothing of fine detail, that learns to expect
    none.  So, unless the value is below ``enough`` already, what is expected is moved to the nearest value that the file leaves open,
    and that is regressed in place of the window, until it comes to rest: expectation and maximisation (Dempster, Laird and Rubin, JRSS B
    39(1), 1977) with a momentum (Beck and Teboulle, SIAM Journal on Imaging Sciences 2(1), 2009).

    Args:
        known: (k, size * size) of mean 0 and variance 1.
        window: (size, size) grey levels on the grid of the file's blocks.
        steps: (8, 8) of the file, nought where nothing was rounded away, infinite where everything was.
        enough: the value below which the first look will do.

    Returns:
        About 1 for what was cut from the original; None if the file leaves everything open.  Cost: 1 ms, as much again above ``enough``.
    """
    size = window.shape[0]
    told = ASKED.ravel() & np.isfinite(steps.ravel())
    if not told.any():
        return None
    target = window.astype(np.float32).ravel()
    target -= target.mean()
    normal = (known @ known.T).astype(np.float64) + RIDGE * target.size * np.eye(len(known))
    weights = np.linalg.solve(normal, (known @ target).astype(np.float64)).astype(np.float32)
    expected = coefficients((weights @ known).reshape(size, size))[:, told]
    step = steps.ravel()[told].astype(np.float32)
    seen = coefficients(target.reshape(size, size))[:, told]
    allowed = np.sqrt(ROUNDING + MISFIT * (expected**2).mean(0))
    middle = np.where(step >= SNAPPED, np.round(seen / np.maximum(step, 1)) * step, seen) / allowed
    half = np.maximum(step, LEAST_INTERVAL) / 2 / allowed
    value = _factor(expected / allowed, middle, half)
    if value < enough or step.max() < SNAPPED:
        return value
    waves = (coefficients(known.reshape(-1, size, size))[..., told] / allowed).reshape(len(known), -1)
    low, high = np.ravel(middle - half), np.ravel(middle + half)
    normal = (waves @ waves.T).astype(np.float64)
    normal += (RIDGE * normal.trace() / len(known) + 1e-6) * np.eye(len(known))
    back = np.linalg.inv(normal).astype(np.float32) @ waves
    ahead, momentum = weights, 1.0
    for _ in range(TIMES):
        last, weights = weights, back @ np.clip(ahead @ waves, low, high)
        before, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = weights + np.float32((before - 1) / momentum) * (weights - last)
    return _factor((weights @ waves).reshape(middle.shape), middle, half)


def _factor(expected: NDArray[np.float32], middle: NDArray[np.float32], half: NDArray[np.float32]) -> float:
    """The variance of ``expected``, in units of what is allowed for, under which it most likely falls within ``half`` of ``middle``.

    The likelihood is that of a logistic distribution, whose tails forgive a few outliers.
    """
    beyond = np.abs(expected - middle) - half
    across = beyond + 2 * half

    @cache
    def likelihood(power: int) -> float:
        per_logit = np.float32(np.pi / np.sqrt(3 * 2.0**power))
        near, far = (1 / (1 + np.exp(np.minimum(x * per_logit, MOST_LOGITS))) for x in (beyond, across))
        return float(np.log(np.maximum(near - far, LEAST_LIKELY)).sum())

    best, hopeless = 0, 0.5 * beyond.size * np.log(LEAST_LIKELY)  # where most are far outside, nothing tells which way to go
    while best < MOST_POWER and (likelihood(best) < hopeless or likelihood(best + 1) > likelihood(best)):
        best += 1
    while best > LEAST_POWER and likelihood(best - 1) > likelihood(best):
        best -= 1
    before, here, after = (likelihood(best + step) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    vertex = min(1.0, max(-1.0, (before - after) / (2 * bend))) if bend < 0 else 0.0
    return float(2.0 ** (best + vertex))


def earlier_steps(seen: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The steps (8, 8) of an earlier JPEG with the same blocks, whose multiples :func:`coefficients` (blocks, 64) still lie about.

    Fan and de Queiroz, "Identification of Bitmap Compression History: JPEG Detection and Quantizer Estimation", IEEE Transactions on
    Image Processing 12(2), 2003.  What too few multiples tell is taken from the usual table, if the others are of it, and is infinite
    if not.  None if nothing tells of such a file.
    """
    told, sure = np.zeros((BLOCK, BLOCK)), 0
    for row, column in np.argwhere(ASKED):
        told[row, column], count = _comb(seen[:, BLOCK * row + column], max(LEAST_STEP, COARSER * steps[row, column]))
        sure += count >= SURELY
    if sure < LEAST_COMBS:
        return None
    usual = np.maximum(1, np.round(USUAL * np.median((told / USUAL)[told > 0])))
    alike = (np.abs(usual - told) <= np.maximum(1, UNLIKE * told))[told > 0].mean() >= MOSTLY
    return np.where(told > 0, told, np.maximum(steps, usual if alike else np.inf))


def _comb(values: NDArray[np.float32], least: float) -> tuple[float, int]:
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
