"""Judging a run: the model beside the baselines on the same pictures, and what the calibration promised beside what came true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropreg import boxes, calibration
from cropreg.checkpoint import Calibration
from cropreg.metrics import Margins, skill, skill_interval, summarise


def evaluate(
    predicted_norm: NDArray[np.float64],
    spread: NDArray[np.float64],
    true_norm: NDArray[np.float64],
    baselines: Mapping[str, Margins],
    how: Calibration | None,
    *,
    resamplings: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The figures of ``evaluation.json``.

    Args:
        predicted_norm, spread, true_norm: (N, 4) shares of the picture, N > 0.
        baselines: constant margins that the training rows taught.
        how: the model's calibration, to hold its promise against what came true.
        resamplings: of the bootstrap; 0 leaves the interval out.
        rng: for the bootstrap.
    """
    ious = {name: boxes.iou(boxes.from_margins(margins), true_norm) for name, margins in baselines.items()}
    best = max(ious, key=lambda name: float(ious[name].mean()))
    model_iou = boxes.iou(predicted_norm, true_norm)
    result: dict[str, Any] = {
        "n": len(true_norm),
        "model": summarise(predicted_norm, true_norm),
        "baselines": {
            name: summarise(np.broadcast_to(boxes.from_margins(m), true_norm.shape), true_norm) for name, m in baselines.items()
        },
        "best_baseline": best,
        "skill": skill(float(model_iou.mean()), float(ious[best].mean())),
        "skill_ci": skill_interval(model_iou, ious[best], resamplings, rng) if resamplings else None,
    }
    if how is not None and how.edge_factors is not None:
        low, high = np.moveaxis(calibration.intervals(predicted_norm, spread, how), -1, 0)
        inside = (true_norm >= low) & (true_norm <= high)
        result["intervals"] = {"promised": how.coverage, "held": float(inside.mean()), "width_mean": float((high - low).mean())}
    return result


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
