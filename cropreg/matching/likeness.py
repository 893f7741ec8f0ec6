"""A hash of what a picture shows, so that near-duplicates among millions of pictures are found without decoding any again."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HASH = "dct64-1"  # its name: hashes of another one must not be compared with these

_SIDE, _GRID, _WAVES = 64, 32, 8  # pixels the picture is averaged to, samples taken of those, waves per axis that make the bits
_EVEN_SHARE = 0.2  # of activity that is spread evenly, so that no part of the picture is left without samples
_LEAST_WAVE = 1.0  # levels; blank pages and skies have 0.3 at most, the faintest page of text 2.8 (benchmarks/groups.py)


def perceptual_hash(grey: NDArray[np.uint8]) -> int | None:
    """The hash, 64 bits, of a picture (H, W), upright; None where there is too little texture to tell it from others, as on a blank page.

    Near-duplicates (saved again, resized, re-toned, neighbours of a burst) differ in few bits, different pictures in 32 on average.
    The bits say which of the 8 x 8 lowest waves (DCT) that run along both axes are above their median, so tone and contrast cancel out.
    The samples are not spaced evenly but by how much happens in their rows and columns: a print on a scanner bed is described by what
    is on the print, not by where it lies, which it may share with thousands of others.
    """
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    steps = np.abs(np.diff(small, axis=1, append=small[:, -1:])) + np.abs(np.diff(small, axis=0, append=small[-1:]))
    mean = float(steps.mean()) + 0.5
    steps = np.clip(steps - 0.1 * mean, 0, 2 * mean)  # neither noise nor the rim of the print decides
    x, y = (_spaced(steps.mean(axis=axis)) for axis in (0, 1))
    smooth = cv2.GaussianBlur(small, (0, 0), 0.8)
    sampled = cv2.remap(smooth, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    waves = cv2.dct(sampled)[1 : 1 + _WAVES, 1 : 1 + _WAVES].ravel()
    if float(np.median(np.abs(waves))) < _LEAST_WAVE:
        return None
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def _spaced(activity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where to sample (_GRID,) along an axis, in pixel indices: each sample stands for the same share of the activity (_SIDE,)."""
    density = cv2.blur(activity[None], (5, 1))[0] + _EVEN_SHARE * activity.mean() + 1e-3
    reached = np.concatenate([[0], np.cumsum(density, dtype=np.float64)])
    wanted = (np.arange(_GRID) + 0.5) / _GRID * reached[-1]
    return (np.interp(wanted, reached, np.arange(_SIDE + 1)) - 0.5).astype(np.float32)
