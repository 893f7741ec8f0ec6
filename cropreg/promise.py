"""A promise about crops that nobody looks at: at most such a share of those written loses more than so much of their content.

A crop loses content where an edge lies inside the true box by more than the tolerance.  Two plans can be promised by:

- *even*: edges stay where they were predicted, and pictures with more doubt than a limit go to review;
- *safe*: every picture is written, and its edges move outward by so many times their spread that few enough lose content.

The promise holds with ``SURENESS`` over the chance of which pairs fell into the ``calib`` split: the share is that among the crops
written, of ever more pictures like those, not an average over trainings.  It is proven by the exact binomial test on the ``calib`` rows.
What is tested must not have been chosen by them.  So the ``val`` rows propose the limits and where to start, and the limits are tested from
there upward, each only if the one before it held (fixed sequence testing).  For the safe plan more reach never loses more, so the least
that passes needs no correction.  Nothing is assumed of how errors and doubt are distributed, or of whether doubt means anything.

Sources: Clopper and Pearson 1934; Angelopoulos et al., "Learn then Test", 2021; Bates et al., "Distribution-free, risk-controlling
prediction sets", 2021; for the reach of the safe plan Wilks 1941.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropreg.checkpoint import Calibration, Outcomes
from cropreg.errors import UsageError
from cropreg.strips import OUTWARD

SURENESS = 0.95
DEFAULT_TOLERANCE = 0.005
_MOST_ROWS = 4096  # kept of a split: enough to promise 0.1%, and 300 KB in the checkpoint
_SHARES = np.arange(0.05, 1.0, 0.05)  # of the val pictures, least doubtful first, whose doubt is a limit to try
_LEAST_FLOOR = 1e-4


@dataclass(frozen=True)
class Promise:
    """What is done with new pictures, and what may be said of the crops written.

    Attributes:
        max_risk, tolerance: what was asked for; shares.
        doubt_limit: a picture whose mean spread is above it goes to review; infinite: none does.
        reach, floor: edges move outward by ``reach * (spread + floor)``, shares of the side.
        tested, lost: ``calib`` pictures below the limit, and how many of them lose content.
        rows: ``calib`` pictures in all.
    """

    max_risk: float
    tolerance: float
    doubt_limit: float
    reach: float
    floor: float
    tested: int
    lost: int
    rows: int

    def boxes(self, predicted_norm: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """The boxes (N, 4) to cut for predicted ones with that spread (N, 4): moved outward, within the picture."""
        return np.clip(predicted_norm + OUTWARD * self.reach * (spread + self.floor), 0, 1)

    def in_words(self) -> str:
        """The promise, and what it rests on."""
        how = f"edges move outward by {self.reach:.2f} times their spread" if self.reach else "edges stay where they were predicted"
        return (
            f"at most {self.max_risk:.2%} of the crops written lose more than {self.tolerance:.2%} of a side ({SURENESS:.0%} sure, of "
            f"pictures like those of the run): {how}; of {self.rows} pairs in calib {self.tested} would be written, and {self.lost} of "
            "them lose that much"
        )


def outcomes(
    predicted_norm: NDArray[np.float64], spread: NDArray[np.float64], true_norm: NDArray[np.float64], groups: Sequence[str]
) -> Outcomes:
    """What to keep of rows with a known truth: of each group one, for the binomial test wants pictures that have nothing in common.

    Args:
        predicted_norm, spread, true_norm: (N, 4) shares of the picture.
        groups: (N) what the rows belong to.
    """
    first = np.unique(np.asarray(groups, str), return_index=True)[1]
    if len(first) > _MOST_ROWS:
        first = first[np.linspace(0, len(first) - 1, _MOST_ROWS).astype(int)]
    inside = OUTWARD * (true_norm - predicted_norm)
    return Outcomes(inside=_rows(inside[first]), spread=_rows(spread[first]))


def decide(how: Calibration | None, max_risk: float, tolerance: float, lean: str) -> Promise:
    """How to keep the promise with that model.

    Args:
        how: what the model's checkpoint knows of its errors.
        max_risk: share of the crops written, in (0, 1).
        tolerance: share of the picture's side.
        lean: ``even`` or ``safe``.

    Raises:
        UsageError: it cannot be promised; the message says why, what can be, and what it would take.
    """
    if lean == "greedy":
        raise UsageError(
            "--max-risk: with --lean greedy edges give content away, so nothing can be promised. Use --lean safe or even."
        )
    if how is None or how.val is None or how.calib is None or not how.calib.inside or not how.val.inside:
        raise UsageError(
            "--max-risk: this model's checkpoint holds no pairs of the splits calib and val to promise by. Train it again with both: "
            "cropreg match ... --split 60/15/15/10, cropreg train."
        )
    rows, wanted = len(how.calib.inside), rows_needed(max_risk)
    if rows < wanted:
        lowest = math.ceil(1000 * lowest_risk(rows)) / 1000
        raise UsageError(
            f"--max-risk {max_risk:g}: with {rows} pairs in calib nothing below {lowest:.1%} can be promised; give --max-risk "
            f"{lowest:g}, or train with {wanted - rows} pairs more in calib, which makes {wanted}: match more pairs, or give calib more of "
            "them (the third number of cropreg match --split)."
        )
    find = _safe if lean == "safe" else _even
    found = find(how.val, how.calib, max_risk, tolerance)
    if found is None:
        raise UsageError(_refusal(how.val, how.calib, max_risk, tolerance))
    return found


def rows_needed(max_risk: float) -> int:
    """The fewest pictures that can prove a risk of at most ``max_risk``: none of them lost anything.

    >>> rows_needed(0.01), rows_needed(0.05)
    (299, 59)
    """
    return math.ceil(math.log(1 - SURENESS) / math.log1p(-max_risk))


def lowest_risk(rows: int) -> float:
    """The lowest risk that so many pictures can prove.

    >>> round(lowest_risk(49), 3)
    0.059
    """
    return -math.expm1(math.log(1 - SURENESS) / rows)


def losses_allowed(rows: int, max_risk: float) -> int:
    """How many of so many pictures may lose content and still prove a risk of at most ``max_risk``; -1: too few pictures.

    >>> losses_allowed(299, 0.01), losses_allowed(298, 0.01), losses_allowed(1000, 0.01)
    (0, -1, 4)
    """
    return int(np.searchsorted(np.cumsum(_chances(rows, max_risk)), 1 - SURENESS, side="right")) - 1


def _even(val: Outcomes, calib: Outcomes, max_risk: float, tolerance: float) -> Promise | None:
    """The highest limit of doubt that is proven, from the likeliest one upward."""
    doubt, loses = _doubt(calib), _loses(calib, tolerance)
    val_doubt, val_loses = _doubt(val), _loses(val, tolerance)
    limits = [*np.unique(np.quantile(val_doubt, _SHARES)), math.inf]
    chances = []
    for limit in limits:  # how likely it passes, as far as the val rows can tell
        near = val_doubt <= limit
        rows, risk = int(near.mean() * len(doubt)), (val_loses[near].sum() + 0.5) / (near.sum() + 1)
        chances.append(_chances(rows, float(risk))[: losses_allowed(rows, max_risk) + 1].sum())
    best = None
    for limit in limits[int(np.argmax(chances)) :]:
        written = doubt <= limit
        tested, lost = int(written.sum()), int(loses[written].sum())
        if lost > losses_allowed(tested, max_risk):
            break
        best = Promise(max_risk, tolerance, float(limit), 0.0, _floor(val), tested, lost, len(doubt))
    return best


def _safe(val: Outcomes, calib: Outcomes, max_risk: float, tolerance: float) -> Promise | None:
    """The least reach that is proven."""
    rows, floor = len(calib.inside), _floor(val)
    allowed = losses_allowed(rows, max_risk)
    if allowed < 0:
        return None
    needed = ((np.array(calib.inside) - tolerance) / (np.array(calib.spread) + floor)).max(
        axis=1
    )  # (N,) reach that keeps a picture whole
    reach = max(0.0, float(np.sort(needed)[rows - 1 - allowed]))
    return Promise(max_risk, tolerance, math.inf, reach, floor, rows, int((needed > reach).sum()), rows)


def _refusal(val: Outcomes, calib: Outcomes, max_risk: float, tolerance: float) -> str:
    lost, rows = int(_loses(calib, tolerance).sum()), len(calib.inside)
    said = (
        f"--max-risk {max_risk:g} cannot be promised with edges where they are predicted: {lost} of {rows} pairs in calib lose more "
        f"than {tolerance:.2%} of a side, and the doubt does not tell enough of them apart. Use --lean safe, which moves edges outward as "
        "far as needed, or a larger --tolerance"
    )
    for risk in np.arange(math.ceil(100 * max_risk + 1e-9), 100) / 100:
        found = _even(val, calib, float(risk), tolerance)
        if found is not None:
            return f"{said}, or --max-risk {risk:g} (which would write about {found.tested / rows:.0%} of the pictures)."
    return said + "."


def _doubt(rows: Outcomes) -> NDArray[np.float64]:
    return np.array(rows.spread).mean(axis=1)


def _loses(rows: Outcomes, tolerance: float) -> NDArray[np.bool_]:
    return np.asarray((np.array(rows.inside) > tolerance).any(axis=1))


def _floor(val: Outcomes) -> float:
    """What is added to every spread: an edge that the model is quite sure of is off by something, too."""
    return max(float(np.median(val.spread)), _LEAST_FLOOR)


def _chances(rows: int, risk: float) -> NDArray[np.float64]:
    """The binomial probabilities that of so many pictures none, one, ... all lose content: (rows + 1,)."""
    lost = np.arange(rows + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((rows - lost[1:] + 1) / lost[1:]))])
    return np.asarray(np.exp(ways + lost * math.log(risk) + (rows - lost) * math.log1p(-risk)))


def _rows(values: NDArray[np.float64]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in values.round(6))
