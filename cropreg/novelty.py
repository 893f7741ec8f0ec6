"""Whether a picture is of the kind the model has learned from: a landscape among scans, or another scanner's, is not.

The first look's features, averaged over the picture, say what kind it is.  Those of training pictures span an ellipsoid; the distance of a
picture from its centre, along few principal axes and in what they leave, is held against the distances of pictures that trained nothing.
A picture is unlike them if it lies farther out than all but a hundredth of these.

Sources: Lee et al. 2018 for the distance, Vovk et al. 2005 for the limit, which is that of a conformal p-value.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cropreg.checkpoint import Novelty

MOST_LEARNED_FROM = 512  # training pictures: more of them hardly move the ellipsoid, and each costs a look
_AXES = 16
_FALSE_ALARMS = 0.01
_LEAST_ROWS = 20
_LEAST_REST = 1e-3  # of the longest axis: below it stands what rounding leaves


def fit(known: NDArray[np.float64], aside: NDArray[np.float64]) -> Novelty | None:
    """Learns the kind from features of training pictures (N, F), and its limit from those of pictures kept aside (M, F).

    Of ordinary pictures 1% are taken for unlike, or one in M + 1 where M is below 99.  None with fewer than 20 of either.
    """
    if min(len(known), len(aside)) < _LEAST_ROWS:
        return None
    centre = known.mean(axis=0)
    _, lengths, axes = np.linalg.svd(known - centre, full_matrices=False)
    deviations = lengths / math.sqrt(len(known))
    count = min(_AXES, len(known) // 4, int((deviations > 1e-6 * max(deviations[0], 1e-12)).sum()))
    rest = float(np.sqrt((deviations[count:] ** 2).mean())) if count < len(deviations) else 0.0
    learned = Novelty(
        centre=_short(centre),
        axes=tuple(_short(axis / deviation) for axis, deviation in zip(axes[:count], deviations[:count], strict=True)),
        rest=max(rest, _LEAST_REST * float(deviations[0]), 1e-6),
        limit=math.inf,
        rows=len(aside),
    )
    distances = np.sort(distance(aside, learned))
    rank = min(math.ceil((len(aside) + 1) * (1 - _FALSE_ALARMS)), len(aside))
    return learned.model_copy(update={"limit": float(distances[rank - 1])})


def distance(features: NDArray[np.float64], learned: Novelty) -> NDArray[np.float64]:
    """How far pictures (N, F) lie from the kind that was learned, (N,): a Mahalanobis distance."""
    off = features - np.asarray(learned.centre)
    axes = np.asarray(learned.axes).reshape(-1, len(learned.centre))
    along = off @ axes.T  # (N, K) standard deviations
    deviations = 1 / np.linalg.norm(axes, axis=1)
    left = np.maximum((off**2).sum(axis=1) - ((along * deviations) ** 2).sum(axis=1), 0)
    return np.asarray(np.sqrt((along**2).sum(axis=1) + left / learned.rest**2))


def times_limit(features: NDArray[np.float64], learned: Novelty | None) -> NDArray[np.float64]:
    """How often the limit of ordinary pictures goes into the distance, (N,): above 1 is unlike them; NaN where nothing was learned."""
    return np.full(len(features), np.nan) if learned is None else distance(features, learned) / learned.limit


def _short(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
