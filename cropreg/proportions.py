"""One aspect for all crops: who cuts everything to 4:3 leaves edges where the picture shows nothing, and yet not just anywhere.

Whether a hand does so is learned from the labels.  A predicted box is then moved onto that aspect, each edge by as much as it is unsure:
edges that have a border to lie at stay, and say where the others are.  A model with a second look does better: it finds the box that such
a hand trims (:mod:`cropreg.trimming`), and the crop is what is left of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import denormalise, normalise
from cropreg.checkpoint import Proportion
from cropreg.model import CropRegressor
from cropreg.trimming import lying_share, trimmed

_LEAST_ROWS = 30
_LARGEST_DEVIATION = 0.03  # of the natural logarithm of long over short side: about 3%; two aspects next to each other give more
_WITHIN, _HELD_BY = 3.0, 0.9  # the share of labels that must lie within so many deviations: a hand with two aspects has none
_STEP = 1e-5  # share of a side, by which edges are moved to see what of it trimming leaves
_SUREST = 1e-3  # share of a side: edges said to be surer than this may be off by as much


def learn(boxes_norm: NDArray[np.float64], sizes_wh: NDArray[np.int64]) -> Proportion | None:
    """The aspect that labels (N, 4) of pictures (N, 2) have in common, lying or standing; None if there is none, or they are too few.

    Middle and deviation are medians: a few crops of another shape do not count.
    """
    if len(boxes_norm) < _LEAST_ROWS:
        return None
    boxes_px = denormalise(boxes_norm, sizes_wh)
    logs = np.abs(np.log((boxes_px[:, 2] - boxes_px[:, 0]) / (boxes_px[:, 3] - boxes_px[:, 1])))
    middle = float(np.median(logs))
    off = np.abs(logs - middle)
    deviation = max(1.4826 * float(np.median(off)), _SUREST)
    if deviation > _LARGEST_DEVIATION or (off <= _WITHIN * deviation).mean() < _HELD_BY:
        return None
    return Proportion(aspect=float(np.exp(middle)), deviation=deviation, rows=len(boxes_norm))


def held_to(
    boxes_norm: NDArray[np.float64], spread: NDArray[np.float64], sizes_wh: NDArray[np.int64], what: Proportion | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Moves boxes onto an aspect.

    Errors are taken for normal and independent, ``spread`` for their standard deviation, and the aspect for one more measurement: the
    answer is the likeliest box, lying or standing, whichever is likelier (a Kalman update; the aspect is linear in the edges).

    Args:
        boxes_norm, spread: (N, 4) in shares of the pictures.
        sizes_wh: (N, 2) of the pictures, px.
        what: None leaves all as it is.

    Returns:
        boxes (N, 4), which may reach beyond the picture, and their spread (N, 4): less for edges that the others tell of, more where
        lying and standing are about as likely.
    """
    if what is None:
        return boxes_norm, spread
    edges, variance = denormalise(boxes_norm, sizes_wh), denormalise(np.hypot(spread, _SUREST), sizes_wh) ** 2
    moved, left, unlikely = [], [], []
    for aspect in (what.aspect, 1 / what.aspect):
        slope = np.array([-1, aspect, 1, -aspect])  # of width - aspect * height
        amiss = edges @ slope
        size = (np.abs(edges[:, 2] - edges[:, 0]) + aspect * np.abs(edges[:, 3] - edges[:, 1])) / 2
        total = variance @ slope**2 + (what.deviation * size) ** 2
        gain = variance * slope / total[:, None]  # (N, 4)
        moved.append(edges - gain * amiss[:, None])
        left.append(variance * (1 - gain * slope))
        unlikely.append(amiss**2 / total)
    lying, standing = unlikely
    share = 1 / (1 + np.exp(np.clip((lying - standing) / 2, -50, 50)))[:, None]  # how likely it is lying
    found = np.where(share >= 0.5, *moved)
    between = share * (1 - share) * (moved[0] - moved[1]) ** 2
    doubt = np.sqrt(np.where(share >= 0.5, *left) + between)
    return normalise(found, sizes_wh), normalise(doubt, sizes_wh)


def trimmed_to(
    boxes_norm: NDArray[np.float64], spread: NDArray[np.float64], sizes_wh: NDArray[np.int64], what: Proportion
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The crops (N, 4) that trimming leaves of untrimmed boxes (N, 4), and their spread (N, 4).

    Errors of untrimmed edges are taken for independent, ``spread`` for their standard deviation.  Edges where nothing shows are off by the
    hand's own tremor, too; and where lying and standing are about as likely, by what lies between them.
    """
    wide = denormalise(boxes_norm, sizes_wh)
    sides = wide[:, 2:] - wide[:, :2]
    unsure = np.linalg.norm(denormalise(spread, sizes_wh) / np.tile(sides, 2), axis=1)  # of the logarithm of width over height
    share = lying_share(boxes_norm, sizes_wh, what.turn, unsure)
    lying = share > 0.5
    found, other = (trimmed(boxes_norm, sizes_wh, what.aspect, to, what.shares) for to in (lying, ~lying))
    steps = [trimmed(boxes_norm + _STEP * edge, sizes_wh, what.aspect, lying, what.shares) - found for edge in np.eye(4)]
    variance = sum((step / _STEP * spread[:, [edge]]) ** 2 for edge, step in enumerate(steps))
    tremor = what.deviation / 2 * np.tile(found[:, 2:] - found[:, :2], 2) * (np.abs(found - boxes_norm) > _SUREST)
    between = (share * (1 - share))[:, None] * (found - other) ** 2
    return found, np.sqrt(variance + tremor**2 + between)


def as_trained(what: Proportion | None, model: CropRegressor) -> Proportion | None:
    """With how crops are trimmed to the aspect, if the model has learned that."""
    if what is None or model.refiner is None or model.refiner.trimming is None:
        return what
    left, top = model.refiner.trimming.shares.tolist()
    return what.model_copy(update={"shares": (left, top), "turn": model.refiner.trimming.turn.item()})
