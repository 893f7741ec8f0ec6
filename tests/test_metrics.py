"""Metrics, baselines, calibration, evaluation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg import boxes, calibration
from cropreg.evaluation import edges_in_words, evaluate, in_words, table
from cropreg.metrics import copy_nearest, edges_followed, fit_baselines, skill, skill_interval, summarise


def some_boxes(count: int, seed: int = 0, spread: float = 0.05) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.clip(np.array([0.2, 0.1, 0.8, 0.9]) + rng.normal(0, spread, (count, 4)), 0, 1)


def test_perfect_predictions_have_iou_one_and_no_error() -> None:
    truth = some_boxes(20)
    result = summarise(truth, truth)
    assert result["iou_mean"] == result["iou_at_95"] == pytest.approx(1)
    assert result["bde_mean"] == 0


def test_edge_too_far_inside_cuts_too_much_and_one_too_far_outside_too_little() -> None:
    truth = np.tile([0.2, 0.2, 0.8, 0.8], (4, 1))
    predicted = truth.copy()
    predicted[0, 0] += 0.02  # left, inward
    predicted[1, 3] += 0.04  # bottom, outward
    predicted[2] += [0.01, 0, 0.01, 0]  # moved to the right: both
    predicted[3] += 0.004  # too little to count
    result = summarise(predicted, truth, np.tile([1000, 500], (4, 1)))
    assert (result["over_crop"], result["under_crop"]) == (0.5, 0.5)
    assert result["shift_left"] == pytest.approx(-(0.02 + 0.01 + 0.004) / 4)
    assert result["error_bottom"] == pytest.approx((0.04 + 0.004) / 4) == pytest.approx(result["shift_bottom"])
    assert result["shift_left_px"] == pytest.approx(-8.5) and result["error_bottom_px"] == pytest.approx(5.5)
    assert "error_left_px" not in summarise(predicted, truth)


def test_crop_is_copied_from_what_looks_most_alike_but_not_from_its_own_group() -> None:
    known, boxes_norm = np.array([0b1111, 0b1100, 0b0011], np.uint64), some_boxes(3)
    groups = np.array(["a", "b", "c"], object)
    asked = np.array([0b1110, 0b1111, 0b0111], np.uint64)
    copied = copy_nearest(asked, np.array(["x", "a", "a"], object), known, groups, boxes_norm)
    assert np.array_equal(copied[0], np.median(boxes_norm[:2], axis=0)), "two are as near"
    assert np.array_equal(copied[1], np.median(boxes_norm[1:], axis=0)), "its own is not asked"
    assert np.array_equal(copied[2], boxes_norm[2])


def test_iou_optimal_constant_is_at_least_as_good_as_every_other_baseline() -> None:
    for seed in range(5):
        truth = some_boxes(60, seed, spread=0.12)
        truth[:, 2:] = np.maximum(truth[:, 2:], truth[:, :2] + 0.05)
        value = {name: boxes.iou(boxes.from_margins(m), truth).mean() for name, m in fit_baselines(truth).items()}
        assert max(value, key=lambda name: float(value[name])) == "iou_optimal"
        assert set(value) == {"no_crop", "centre", "median_box", "iou_optimal"}


def test_centre_baseline_lies_in_the_middle() -> None:
    left, top, right, bottom = fit_baselines(some_boxes(30))["centre"]
    assert left == pytest.approx(right) and top == pytest.approx(bottom)


def test_skill_is_nought_for_the_baseline_and_one_for_perfection() -> None:
    assert skill(0.6, 0.6) == 0 and skill(1.0, 0.6) == pytest.approx(1) and skill(0.5, 0.6) < 0


def test_skill_interval_holds_the_skill_and_narrows_with_rows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (30, 1000):
        model, base = rng.uniform(0.8, 1, count), rng.uniform(0.4, 0.6, count)
        low, high = skill_interval(model, base, 300, np.random.default_rng(1))
        assert low <= skill(model.mean(), base.mean()) <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_intervals_hold_as_often_as_promised() -> None:
    rng = np.random.default_rng(4)
    held = []
    for _ in range(20):
        spread = rng.uniform(0.001, 0.03, (600, 4))
        predicted = some_boxes(600)
        truth = predicted + rng.normal(0, 1, (600, 4)) * spread
        how = calibration.fit(predicted[:300], spread[:300], truth[:300])
        limits = calibration.intervals(predicted[300:], spread[300:], how)
        held.append(((truth[300:] >= limits[..., 0]) & (truth[300:] <= limits[..., 1])).mean())
    assert abs(np.mean(held) - calibration.COVERAGE) < 0.02


def test_too_few_rows_promise_nothing() -> None:
    predicted, spread = some_boxes(5), np.full((5, 4), 0.01)
    how = calibration.fit(predicted, spread, predicted)
    assert how.edge_factors is None
    assert (calibration.intervals(predicted, spread, how) == [0, 1]).all()
    assert np.isnan(calibration.confidence(spread, how)).all()
    assert np.isnan(calibration.confidence(spread, calibration.fit(predicted[:0], spread[:0], predicted[:0]))).all()


def test_confidence_falls_with_the_spread_and_is_about_right() -> None:
    rng = np.random.default_rng(2)
    predicted = some_boxes(800, spread=0.02)
    spread = np.repeat(rng.uniform(0.001, 0.06, (800, 1)), 4, axis=1)
    truth = predicted + rng.normal(0, 1, (800, 4)) * spread
    how = calibration.fit(predicted[:400], spread[:400], truth[:400])
    sure = calibration.confidence(spread[400:], how)
    good = boxes.iou(predicted[400:], truth[400:]) >= calibration.GOOD_IOU
    order = np.argsort(spread[400:, 0])
    assert (np.diff(sure[order]) <= 1e-12).all()
    assert abs(sure.mean() - good.mean()) < 0.06
    assert good[sure > 0.8].mean() > 0.7 > 0.3 > good[sure < 0.2].mean()


def test_evaluation_tells_model_beside_baselines_and_intervals() -> None:
    truth, predicted = some_boxes(50, 1), some_boxes(50, 1) + 0.005
    spread = np.full((50, 4), 0.005)
    how = calibration.fit(predicted, spread, truth)
    result = evaluate(predicted, spread, truth, fit_baselines(some_boxes(50, 2)), how, resamplings=50, rng=np.random.default_rng(0))
    assert result["n"] == 50 and result["skill_ci"][0] <= result["skill"] <= result["skill_ci"][1]
    assert result["intervals"]["held"] >= 0.9 and set(result["intervals"]["held_by_edge"]) == set(boxes.EDGES)
    assert result["doubt"]["aurc"] == pytest.approx(result["doubt"]["aurc_blind"]), "a constant spread tells nothing"
    assert sum(row["n"] for row in result["reliability"]) == 50
    text = table(result)
    assert "median box" in text and "skill" in text and f"{result['model']['iou_mean']:.3f}" in text
    assert text.count("*") == 2, "the best baseline is marked, and the mark explained"


def test_a_few_good_pictures_first_do_not_hold_down_all_behind_them() -> None:
    rng = np.random.default_rng(2)
    true = np.tile([0.2, 0.2, 0.8, 0.8], (60, 1))
    predicted = true.copy()
    predicted[1] += [0.3, 0.3, 0, 0]  # bad, with the second smallest spread
    spread = np.sort(rng.uniform(0.001, 0.01, 60))[:, None].repeat(4, axis=1)
    how = calibration.fit(predicted, spread, true)
    assert calibration.confidence(spread, how).min() > 0.9, "59 of 60 are good"
    assert all(a > b for a, b in pairwise(how.confidence_values)) or len(how.confidence_values) == 1


def test_an_edge_that_follows_the_truth_correlates_and_a_constant_does_not() -> None:
    truth = some_boxes(200, 5)
    near = truth + np.random.default_rng(0).normal(0, 0.005, truth.shape)
    assert min(edges_followed(near, truth)["correlation"].values()) > 0.95
    assert max(edges_followed(near, truth)["variance_ratio"].values()) == pytest.approx(1, abs=0.1)
    constant = np.broadcast_to(truth.mean(axis=0), truth.shape)
    assert set(edges_followed(constant, truth)["correlation"].values()) == {0.0}
    shy = truth.mean(axis=0) + 0.5 * (truth - truth.mean(axis=0))
    assert list(edges_followed(shy, truth)["variance_ratio"].values()) == pytest.approx([0.25] * 4)


def test_words_tell_a_model_that_only_learned_the_average() -> None:
    truth, rng = some_boxes(200, 5), np.random.default_rng(0)
    baselines = fit_baselines(truth)

    def told(predicted: NDArray[np.float64], rows: int = 200) -> str:
        spread = np.full((rows, 4), 0.01)
        return in_words(evaluate(predicted[:rows], spread, truth[:rows], baselines, None, resamplings=200, rng=rng))

    average = np.broadcast_to(truth.mean(axis=0), truth.shape) + rng.normal(0, 0.002, truth.shape)
    assert "only learned the average crop" in told(average)
    assert "Every edge follows the picture" in told(truth + rng.normal(0, 0.005, truth.shape))
    half = truth.copy()
    half[:, 1] = truth[:, 1].mean() + rng.normal(0, 0.002, 200)
    assert "top 0.0" in told(half) or "top -0." in told(half)
    assert "too few pictures" in told(truth, rows=5)


def test_words_tell_of_each_edge_how_it_follows() -> None:
    truth, rng = some_boxes(200, 5), np.random.default_rng(0)
    half = truth.copy()
    half[:, 1] = truth[:, 1].mean()
    words = edges_in_words(evaluate(half, np.full((200, 4), 0.01), truth, fit_baselines(truth), None, resamplings=0, rng=rng))
    assert words.startswith("left 1.00 (1.00), top 0.00 (0.00), right 1.00 (1.00), bottom 1.00 (1.00): correlation of ")
