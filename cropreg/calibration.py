"""How sure a prediction is: intervals per edge and a confidence, learned from pictures that trained nothing.

The regressor looks at a picture in several frames; where its answers spread, it is unsure.  Split conformal prediction turns the
spread into intervals that hold the truth as often as promised (Vovk et al. 2005; normalised scores, Lei et al. 2018), and isotonic
regression turns it into the probability that the crop is good (IoU of at least ``GOOD_IOU``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cropreg import boxes
from cropreg.checkpoint import Calibration

COVERAGE = 0.9
GOOD_IOU = 0.9
_MIN_ROWS_FOR_CONFIDENCE = 20


def fit(predicted_norm: NDArray[np.float64], spread: NDArray[np.float64], true_norm: NDArray[np.float64]) -> Calibration:
    """Learns the calibration from the rows of the ``calib`` split.

    Args:
        predicted_norm, spread, true_norm: (N, 4) predicted box, spread of its edges, true box; shares of the picture.

    With fewer than nine rows no interval can hold with 90%: ``edge_factors`` is None then, and intervals are the whole picture.
    """
    rows = len(true_norm)
    floor = max(float(np.median(spread)) if rows else 0.0, 1e-4)
    scores = np.sort(np.abs(predicted_norm - true_norm) / (spread + floor), axis=0)
    rank = math.ceil((rows + 1) * COVERAGE)
    factors = tuple(float(v) for v in scores[rank - 1]) if 0 < rank <= rows else None
    spreads: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    if rows >= _MIN_ROWS_FOR_CONFIDENCE:
        spreads, values = _good_by_spread(spread.mean(axis=1), boxes.iou(predicted_norm, true_norm) >= GOOD_IOU)
    return Calibration(
        rows=rows,
        coverage=COVERAGE,
        spread_floor=floor,
        edge_factors=factors,
        confidence_spreads=spreads,
        confidence_values=values,
    )


def intervals(predicted_norm: NDArray[np.float64], spread: NDArray[np.float64], how: Calibration | None) -> NDArray[np.float64]:
    """Where each edge lies with the promised coverage: (N, 4, 2) lowest and highest, shares of the picture, within [0, 1]."""
    if how is None or how.edge_factors is None:
        return np.broadcast_to(np.array([0.0, 1.0]), (*predicted_norm.shape, 2)).copy()
    reach = np.asarray(how.edge_factors) * (spread + how.spread_floor)
    return np.clip(np.stack([predicted_norm - reach, predicted_norm + reach], axis=-1), 0, 1)


def leaned(limits: NDArray[np.float64], lean: str) -> NDArray[np.float64]:
    """The boxes (N, 4) at one end of intervals (N, 4, 2): ``safe`` at the outer one, which keeps more, ``greedy`` at the inner one.

    Edges that meet at the inner ends stay a thousandth apart.
    """
    low, high = limits[..., 0], limits[..., 1]
    if lean == "safe":
        return np.concatenate([low[:, :2], high[:, 2:]], axis=1)
    return boxes.in_order(np.concatenate([high[:, :2], low[:, 2:]], axis=1))


def confidence(spread: NDArray[np.float64], how: Calibration | None) -> NDArray[np.float64]:
    """The probability (N,) that a crop with that spread (N, 4) is good; NaN where there were too few rows to learn it."""
    if how is None or not how.confidence_values:
        return np.full(len(spread), np.nan)
    return np.interp(spread.mean(axis=1), how.confidence_spreads, how.confidence_values)


def _good_by_spread(spread: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic regression, falling with the spread, by pooling adjacent violators; each pool shrunk towards one half.

    Shrinking pulls small pools most, so pools are joined once more where the shrunk values rise: a few good pictures with the smallest
    spread must not hold down all behind them.

    Source: Ayer et al. 1955; Laplace's rule of succession for the shrinking.
    """
    order = np.argsort(spread, kind="stable")
    rows = [_Pool(int(ok), 1, float(at)) for at, ok in zip(spread[order], good[order], strict=True)]
    pools = _pooled(_pooled(rows, lambda pool: pool.good / pool.rows), _Pool.shrunk)
    return tuple(pool.spreads / pool.rows for pool in pools), tuple(map(_Pool.shrunk, pools))


class _Pool(NamedTuple):
    good: int
    rows: int
    spreads: float  # their sum

    def shrunk(self) -> float:
        return (self.good + 1) / (self.rows + 2)


def _pooled(pools: Iterable[_Pool], value: Callable[[_Pool], float]) -> list[_Pool]:
    """Joins neighbours until ``value`` falls from each to the next."""
    joined: list[_Pool] = []
    for pool in pools:
        joined.append(pool)
        while len(joined) > 1 and value(joined[-2]) <= value(joined[-1]):
            last, before = joined.pop(), joined.pop()
            joined.append(_Pool(before.good + last.good, before.rows + last.rows, before.spreads + last.spreads))
    return joined
