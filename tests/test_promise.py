"""A promise about crops that nobody looks at comes true as often as it says; one that cannot be kept is refused, with what it takes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg import promise
from cropreg.checkpoint import Calibration, Outcomes
from cropreg.errors import UsageError
from cropreg.strips import OUTWARD

TOLERANCE = 0.005
Drawn = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def drawn(rng: np.random.Generator, count: int, telling: float = 1.0, size: float = 0.003) -> Drawn:
    """Predicted boxes, spreads and true boxes (N, 4) with heavy-tailed errors; ``telling``: how much of their size the spread tells."""
    hard = rng.exponential(1, (count, 1))
    errors = size * rng.standard_t(3, (count, 4)) * (0.2 + hard)
    spread = size * (0.2 + telling * hard + (1 - telling) * rng.exponential(1, (count, 1))) * rng.uniform(0.8, 1.2, (count, 4))
    predicted = np.tile([0.3, 0.3, 0.7, 0.7], (count, 1))
    return predicted, spread, predicted + errors


def rows_of(made: Drawn) -> Outcomes:
    return promise.outcomes(*made, groups=[str(i) for i in range(len(made[0]))])


def calibration_of(val: Outcomes | None, calib: Outcomes | None) -> Calibration:
    return Calibration(
        rows=0,
        coverage=0.9,
        spread_floor=0.001,
        edge_factors=None,
        confidence_spreads=(),
        confidence_values=(),
        val=val,
        calib=calib,
    )


def lost_share(kept: promise.Promise, made: Drawn) -> float:
    predicted, spread, true = made
    written = spread.mean(axis=1) <= kept.doubt_limit
    return float((OUTWARD * (true - kept.boxes(predicted, spread)) > kept.tolerance).any(axis=1)[written].mean())


@pytest.mark.parametrize("telling", [1.0, 0.0], ids=["doubt tells", "doubt says nothing"])
@pytest.mark.parametrize(("lean", "max_risk", "size"), [("safe", 0.05, 0.003), ("even", 0.2, 0.001)])
def test_promise_comes_true_for_19_of_20_draws_of_the_pairs(lean: str, max_risk: float, size: float, telling: float) -> None:
    rng = np.random.default_rng(3)
    new = drawn(rng, 40_000, telling, size)
    made = broken = 0
    for _ in range(200):
        val, calib = (rows_of(drawn(rng, count, telling, size)) for count in (60, 150))
        try:
            kept = promise.decide(calibration_of(val, calib), max_risk, TOLERANCE, lean)
        except UsageError:
            continue
        made += 1
        broken += lost_share(kept, new) > max_risk
    assert made >= 50, "a promise that is never made is never broken"
    assert broken <= 0.05 * 200 + 5  # of all draws, as the bound is; 5: two standard deviations, and a little


def test_share_seen_on_the_pairs_alone_would_be_broken_by_every_second_draw() -> None:
    rng = np.random.default_rng(3)
    new = drawn(rng, 40_000)
    broken = 0
    for _ in range(100):
        calib = rows_of(drawn(rng, 150))
        needed = ((np.array(calib.inside) - TOLERANCE) / np.array(calib.spread)).max(axis=1)
        naive = promise.Promise(0.05, TOLERANCE, math.inf, float(np.quantile(needed, 0.95)), 0.0, 150, 7, 150)
        broken += lost_share(naive, new) > 0.05
    assert broken > 30


def test_doubt_that_tells_lets_more_be_written_than_doubt_that_does_not() -> None:
    rng, tested = np.random.default_rng(1), []
    for telling in (1.0, 0.0):
        how = calibration_of(*(rows_of(drawn(rng, count, telling, 0.0015)) for count in (400, 1500)))
        try:
            tested.append(promise.decide(how, 0.12, TOLERANCE, "even").tested)
        except UsageError:
            tested.append(0)
    assert 150 < tested[0] < 1500 and tested[1] < tested[0] / 2


def test_safe_edges_move_outward_and_less_for_a_larger_risk_or_tolerance() -> None:
    rng = np.random.default_rng(5)
    how = calibration_of(*(rows_of(drawn(rng, count)) for count in (100, 400)))
    predicted, spread, _ = drawn(rng, 50)
    asked = [(0.01, 0.005), (0.05, 0.005), (0.05, 0.01)]
    kept = [promise.decide(how, risk, tolerance, "safe") for risk, tolerance in asked]
    assert kept[0].reach > kept[1].reach > kept[2].reach > 0
    moved = OUTWARD * (kept[0].boxes(predicted, spread) - predicted)
    assert (moved > 0).all() and np.argmax(moved.mean(axis=1)) == np.argmax(spread.mean(axis=1))
    assert "at most 1.00% of the crops written lose more than 0.50% of a side" in kept[0].in_words()
    wide = kept[0].boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), np.full((1, 4), 0.1))
    assert (wide == [0, 0, 1, 1]).all()


def test_too_few_pairs_are_told_with_what_can_be_promised_and_what_it_takes() -> None:
    rng = np.random.default_rng(0)
    how = calibration_of(*(rows_of(drawn(rng, count)) for count in (61, 49)))
    with pytest.raises(UsageError) as told:
        promise.decide(how, 0.01, TOLERANCE, "safe")
    words = str(told.value)
    assert "with 49 pairs in calib nothing below 6.0% can be promised" in words and "250 pairs more" in words and "299" in words
    found = re.search(r"give --max-risk ([0-9.]+)", words)
    assert found and promise.decide(how, float(found[1]), TOLERANCE, "safe").lost == 0


def test_refusal_names_a_risk_that_can_be_promised() -> None:
    rng = np.random.default_rng(0)
    how = calibration_of(*(rows_of(drawn(rng, count, size=0.006)) for count in (100, 400)))
    with pytest.raises(UsageError) as told:
        promise.decide(how, 0.02, TOLERANCE, "even")
    found = re.search(r"--max-risk ([0-9.]+) \(which would write about ([0-9]+)%", str(told.value))
    assert found and "--lean safe" in str(told.value)
    kept = promise.decide(how, float(found[1]), TOLERANCE, "even")
    assert kept.tested == pytest.approx(4 * int(found[2]), abs=2) and kept.lost > 0


@pytest.mark.parametrize("how", [None, calibration_of(None, None), calibration_of(Outcomes(inside=(), spread=()), None)])
def test_model_without_known_outcomes_can_promise_nothing(how: Calibration | None) -> None:
    with pytest.raises(UsageError, match="no pairs of the splits calib and val to promise by"):
        promise.decide(how, 0.1, TOLERANCE, "even")


def test_greedy_crops_cannot_be_promised() -> None:
    with pytest.raises(UsageError, match="give content away"):
        promise.decide(None, 0.1, TOLERANCE, "greedy")


def test_of_each_group_one_picture_counts() -> None:
    made = drawn(np.random.default_rng(0), 6)
    kept = promise.outcomes(*made, groups=list("abbcca"))
    assert len(kept.inside) == len(kept.spread) == 3
    assert kept.inside[1][2] == pytest.approx(made[2][1, 2] - made[0][1, 2], abs=1e-6), "right: the true edge lies farther out"


@pytest.mark.parametrize(("rows", "risk"), [(20, 0.3), (300, 0.01), (2000, 0.02), (59, 0.05), (58, 0.05)])
def test_losses_allowed_are_the_most_that_the_binomial_test_takes(rows: int, risk: float) -> None:
    def at_most(lost: int) -> float:
        return sum(math.comb(rows, k) * risk**k * (1 - risk) ** (rows - k) for k in range(lost + 1))

    allowed = promise.losses_allowed(rows, risk)
    assert at_most(allowed) <= 1 - promise.SURENESS < at_most(allowed + 1)
    assert (allowed >= 0) == (rows >= promise.rows_needed(risk)) == (promise.lowest_risk(rows) <= risk)
