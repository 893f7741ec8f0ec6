"""Whether doubt tells good crops from bad ones: what remains wrong when the doubtful are left out, and whether confidence comes true.

Source of the risk-coverage curve and the area under it: El-Yaniv and Wiener 2010; Geifman et al. 2019.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POINTS = 20
_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def risk_coverage(doubt: NDArray[np.float64], loss: NDArray[np.float64]) -> dict[str, Any]:
    """What is lost on average over the least doubtful pictures, for ever more of them.

    Args:
        doubt, loss: (N,), N > 0; equal doubts keep the loss of their mean, so that their order says nothing.

    Returns:
        ``aurc``, the mean of that average over all numbers of pictures; ``aurc_best`` of a doubt that sorts by the loss itself,
        ``aurc_blind`` of one that says nothing; ``curve``: lists ``share`` of the pictures and ``risk``, 20 points at most, whole numbers
        of pictures.
    """
    order = np.argsort(doubt, kind="stable")
    _, first, counts = np.unique(doubt[order], return_index=True, return_counts=True)
    tied = np.repeat(np.add.reduceat(loss[order], first) / counts, counts)
    risks = _running_mean(tied)
    rows = np.unique(np.linspace(len(loss) / _POINTS, len(loss), _POINTS).round().astype(int).clip(1))
    return {
        "aurc": float(risks.mean()),
        "aurc_best": float(_running_mean(np.sort(loss)).mean()),
        "aurc_blind": float(loss.mean()),
        "curve": {"share": (rows / len(loss)).tolist(), "risk": risks[rows - 1].tolist()},
    }


def reliability(said: NDArray[np.float64], good: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Confidence beside what came true: for each bin with pictures in it ``low``, ``high``, ``n``, mean ``said``, share ``good``.

    Args:
        said: (N,) confidence, NaN where there is none: left out.
        good: (N,) whether the crop was good.
    """
    rows = []
    for low, high in pairwise(_BINS):
        inside = (said >= low) & ((said < high) | (high == _BINS[-1]))
        if inside.any():
            rows.append(
                {
                    "low": low,
                    "high": high,
                    "n": int(inside.sum()),
                    "said": float(said[inside].mean()),
                    "good": float(good[inside].mean()),
                }
            )
    return rows


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.cumsum(values) / np.arange(1, len(values) + 1))
