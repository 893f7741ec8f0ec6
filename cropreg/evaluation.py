"""Judging a run: the model beside the baselines on the same pictures, and what the calibration promised beside what came true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropreg import boxes, calibration
from cropreg.checkpoint import Calibration
from cropreg.doubt import reliability, risk_coverage
from cropreg.metrics import Margins, edges_followed, skill, skill_interval, summarise

_FOLLOWS = 0.3  # correlation below which an edge is not said to follow the picture
_MIN_JUDGED = 10


def evaluate(
    predicted_norm: NDArray[np.float64],
    spread: NDArray[np.float64],
    true_norm: NDArray[np.float64],
    baselines: Mapping[str, Margins],
    how: Calibration | None,
    *,
    resamplings: int,
    rng: np.random.Generator,
    sizes_wh: NDArray[np.int64] | None = None,
    neighbour_norm: NDArray[np.float64] | None = None,
    halved_norm: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The figures of ``evaluation.json``.

    Args:
        predicted_norm, spread, true_norm: (N, 4) shares of the picture, N > 0.
        baselines: constant margins that the training rows taught.
        how: the model's calibration, to hold its promise against what came true.
        resamplings: of the bootstrap; 0 leaves the interval out.
        rng: for the bootstrap.
        sizes_wh: (N, 2) of the pictures, px, for errors in pixels.
        neighbour_norm: (N, 4) the crop of the training picture that looks most alike.
        halved_norm: (n, 4) what is predicted for half-size copies of the first n pictures.
    """
    ious = {name: boxes.iou(boxes.from_margins(margins), true_norm) for name, margins in baselines.items()}
    best = max(ious, key=lambda name: float(ious[name].mean()))
    model_iou = boxes.iou(predicted_norm, true_norm)
    result: dict[str, Any] = {
        "n": len(true_norm),
        "model": summarise(predicted_norm, true_norm, sizes_wh),
        "baselines": {
            name: summarise(np.broadcast_to(boxes.from_margins(m), true_norm.shape), true_norm, sizes_wh)
            for name, m in baselines.items()
        },
        "best_baseline": best,
        "skill": skill(float(model_iou.mean()), float(ious[best].mean())),
        "skill_ci": skill_interval(model_iou, ious[best], resamplings, rng) if resamplings else None,
        "edges": edges_followed(predicted_norm, true_norm),
    }
    if neighbour_norm is not None:  # it looks at the picture, so it is no baseline of the skill
        result["neighbour"] = summarise(neighbour_norm, true_norm, sizes_wh)
    if halved_norm is not None:
        moved = np.abs(halved_norm - predicted_norm[: len(halved_norm)])
        result["half_size"] = {"n": len(moved), "moved_mean": float(moved.mean()), "moved_95": float(np.quantile(moved, 0.95))}
    if how is not None and how.edge_factors is not None:
        low, high = np.moveaxis(calibration.intervals(predicted_norm, spread, how), -1, 0)
        inside = (true_norm >= low) & (true_norm <= high)
        result["intervals"] = {
            "promised": how.coverage,
            "held": float(inside.mean()),
            "held_by_edge": dict(zip(boxes.EDGES, inside.mean(axis=0).tolist(), strict=True)),
            "width_mean": float((high - low).mean()),
        }
    good = model_iou >= calibration.GOOD_IOU
    result["doubt"] = risk_coverage(spread.mean(axis=1), 1 - model_iou)
    result["reliability"] = reliability(calibration.confidence(spread, how), good)
    return result


def in_words(result: Mapping[str, Any], which: str = "pictures kept aside") -> str:
    """What a model has learned, in a sentence or two: is it more than the average crop?  ``which`` pictures it was judged on."""
    model, best = result["model"]["iou_mean"], result["best_baseline"]
    constant, interval = result["baselines"][best]["iou_mean"], result["skill_ci"] or (result["skill"], result["skill"])
    told = (
        f"On {result['n']} {which} IoU {model:.3f}; the best constant ({best.replace('_', ' ')}) has {constant:.3f}: skill "
        f"{result['skill']:.2f} (95% {interval[0]:.2f} to {interval[1]:.2f})."
    )
    correlations = result["edges"]["correlation"]
    lame = [name for name, value in correlations.items() if value < _FOLLOWS]
    if result["n"] < _MIN_JUDGED:
        return f"{told} These are too few pictures to say more."
    if interval[0] <= 0:
        return f"{told} The model has only learned the average crop. Are the labels right (cropreg check)? More pairs or epochs may help."
    if lame:
        values = ", ".join(f"{name} {correlations[name]:.2f}" for name in lame)
        return f"{told} Some edges hardly follow the picture (correlation with the truth: {values}): they are near their average."
    return f"{told} Every edge follows the picture (lowest correlation with the truth {min(correlations.values()):.2f})."


def edges_in_words(result: Mapping[str, Any]) -> str:
    """Of each edge, how far the predicted margins go along with the true ones."""
    correlation, ratio = (result["edges"][name] for name in ("correlation", "variance_ratio"))
    told = ", ".join(f"{edge} {correlation[edge]:.2f} ({ratio[edge]:.2f})" for edge in correlation)
    return f"{told}: correlation of predicted and true margins, and the ratio of their variances, which is 0 for a constant"


def table(result: Mapping[str, Any]) -> str:
    """The figures as a table for a terminal, best baseline marked."""
    columns = (("iou_mean", "IoU"), ("iou_median", "median"), ("iou_at_75", ">=.75"), ("iou_at_90", ">=.90"), ("bde_mean", "BDE"))
    lines = [f"{'':14s}" + "".join(f"{title:>9s}" for _, title in columns)]
    rows = [("model", result["model"]), *result["baselines"].items()]
    for name, values in rows:
        mark = " *" if name == result["best_baseline"] else ""
        lines.append(f"{name.replace('_', ' ') + mark:14s}" + "".join(f"{values[key]:9.3f}" for key, _ in columns))
    interval = result["skill_ci"]
    lines.append(f"skill {result['skill']:.3f}" + (f" (95% {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""))
    lines[-1] += f" on {result['n']} pictures; * best baseline"
    return "\n".join(lines)
