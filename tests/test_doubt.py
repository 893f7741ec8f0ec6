"""Whether doubt tells good crops from bad ones, in figures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cropreg import calibration, report
from cropreg.doubt import reliability, risk_coverage
from cropreg.evaluation import evaluate
from cropreg.metrics import fit_baselines


def test_area_lies_at_its_bounds_for_doubt_that_knows_all_and_doubt_that_knows_nothing() -> None:
    loss = np.random.default_rng(0).exponential(1, 1000)
    knows, nothing, wrong = (risk_coverage(doubt, loss) for doubt in (loss, np.zeros(1000), -loss))
    assert knows["aurc"] == pytest.approx(knows["aurc_best"])
    assert nothing["aurc"] == pytest.approx(nothing["aurc_blind"]) == pytest.approx(loss.mean())
    assert knows["aurc"] < nothing["aurc"] < wrong["aurc"]


def test_curve_ends_with_all_pictures_and_rises_for_doubt_that_tells() -> None:
    loss = np.random.default_rng(1).exponential(1, 137)
    result = risk_coverage(loss**2, loss)
    share, risk = result["curve"]["share"], result["curve"]["risk"]
    assert share[-1] == 1 and risk[-1] == pytest.approx(loss.mean()) and len(share) == 20
    assert (np.diff(share) > 0).all() and (np.diff(risk) > 0).all()
    assert risk_coverage(np.array([0.1]), np.array([0.4]))["curve"] == {"share": [1.0], "risk": [0.4]}


def test_order_of_equal_doubts_says_nothing() -> None:
    doubt, loss = np.array([1.0, 1, 1, 2]), np.array([0.0, 0.3, 0.6, 0.9])
    first, second = (risk_coverage(doubt, loss[order]) for order in ([0, 1, 2, 3], [2, 1, 0, 3]))
    assert first == second and first["curve"]["risk"][0] == pytest.approx(0.3)


def test_reliability_counts_every_picture_with_a_confidence_once() -> None:
    rng = np.random.default_rng(2)
    said = rng.uniform(0, 1, 5000)
    good = rng.uniform(0, 1, 5000) < said
    rows = reliability(np.concatenate([said, [1.0, np.nan]]), np.concatenate([good, [True, True]]))
    assert sum(row["n"] for row in rows) == 5001
    assert all(row["low"] <= row["said"] <= row["high"] and abs(row["good"] - row["said"]) < 0.07 for row in rows)
    assert reliability(np.full(3, np.nan), np.ones(3, bool)) == []


@pytest.mark.parametrize("rows", [60, 5])
def test_report_tells_how_sure_the_model_is_or_that_nobody_knows(rows: int) -> None:
    rng = np.random.default_rng(3)
    true = np.clip(np.array([0.2, 0.1, 0.8, 0.9]) + rng.normal(0, 0.05, (rows, 4)), 0, 1)
    spread = rng.uniform(0.001, 0.03, (rows, 4))
    predicted = true + spread * rng.normal(size=spread.shape)
    how = calibration.fit(predicted, spread, true)
    result = evaluate(predicted, spread, true, fit_baselines(true), how, resamplings=0, rng=rng) | {"split": "test", "unlike": 0.25}
    plot = report.doubt_png(result["doubt"], result["reliability"])
    page = report.page("a run", result, {"Doubt": ("image/png", plot)}).decode()
    assert "most alike" not in page and ", px" not in page, "nobody gave sizes or a neighbour"
    more = evaluate(
        predicted,
        spread,
        true,
        fit_baselines(true),
        how,
        resamplings=0,
        rng=rng,
        sizes_wh=np.full((rows, 2), 900),
        neighbour_norm=true,
        halved_norm=predicted[:4] + 0.002,
    )
    told = report.page("a run", more | {"split": "test"}, {"Edges": ("image/png", report.shifts_png(predicted - true))}).decode()
    assert (
        "<td>most alike</td>" in told
        and f"{more['model']['error_top_px']:.1f}" in told
        and f"{100 * more['model']['shift_left']:+.2f}%" in told
    )
    assert "differs by 0.20% of a side" in told and "(4 pictures)" in told and "half the size" not in page
    assert ("came true" in page and "left 9" in page) == (rows == 60)
    assert ("too few pairs in its calib split" in page) == (rows == 5)
    assert "25.0% of these pictures look unlike" in page and f"{result['doubt']['aurc']:.4f}" in page
    pixels = cv2.imdecode(np.frombuffer(plot, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[1] > 2 * pixels.shape[0] and pixels.std() > 10
