"""How good boxes are: IoU and BDE, the baselines that never look at a picture, and the skill beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropreg import boxes
from cropreg.strips import OUTWARD

Margins = tuple[float, float, float, float]
_THRESHOLDS = (0.75, 0.90, 0.95)
_NOTICED = 0.005  # share of a side that an edge may be off before it is said to cut too much, or too little


def summarise(
    predicted_norm: NDArray[np.float64], true_norm: NDArray[np.float64], sizes_wh: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Mean and median IoU, the share of pictures above .75, .90 and .95, and the errors of all edges and of each.

    ``error_left`` is the mean distance, ``shift_left`` the mean of how far outward the edge lies (inward: negative), shares of the side;
    with ``sizes_wh`` the same in pixels, ``error_left_px`` and ``shift_left_px``.  ``over_crop`` is the share of pictures of which some
    edge cuts away more than .005 of a side that the true box holds, ``under_crop`` the share of which some edge leaves that much too much.

    Args:
        predicted_norm, true_norm: (N, 4) boxes in shares of the picture, N > 0.
        sizes_wh: (N, 2) of the pictures, px.
    """
    iou = boxes.iou(predicted_norm, true_norm)
    shift = (predicted_norm - true_norm) * OUTWARD
    edge = np.abs(shift)
    result = {"iou_mean": float(iou.mean()), "iou_median": float(np.median(iou))}
    result |= {f"iou_at_{round(100 * t)}": float((iou >= t).mean()) for t in _THRESHOLDS}
    result |= {"bde_mean": float(edge.mean()), "bde_median": float(np.median(edge.mean(axis=1)))}
    result["over_crop"] = float((shift < -_NOTICED).any(axis=1).mean())
    result["under_crop"] = float((shift > _NOTICED).any(axis=1).mean())
    units = {"": np.ones((1, 4))} | ({} if sizes_wh is None else {"_px": np.tile(sizes_wh, 2)})
    for unit, scale in units.items():
        for name, values in (("error", edge * scale), ("shift", shift * scale)):
            result |= {f"{name}_{e}{unit}": float(values[:, i].mean()) for i, e in enumerate(boxes.EDGES)}
    return result


def copy_nearest(
    hashes: NDArray[np.uint64],
    groups: NDArray[Any],
    known: NDArray[np.uint64],
    known_groups: NDArray[Any],
    boxes_norm: NDArray[Any],
) -> NDArray[np.float64]:
    """The box (N, 4) of the known picture that looks most like each: of the fewest different bits of the perceptual hash.

    Pictures of its own group are not asked.  Of several as near it is their median.

    Args:
        hashes, groups: (N,) of the pictures.
        known, known_groups, boxes_norm: (M,), (M,) and (M, 4) of those whose crops are known, of at least one other group each.
    """
    found = np.empty((len(hashes), 4))
    for i, (one, group) in enumerate(zip(hashes, groups, strict=True)):
        bits = np.where(known_groups == group, 255, np.bitwise_count(known ^ one))
        found[i] = np.median(boxes_norm[bits == bits.min()], axis=0)
    return found


def fit_baselines(true_norm: NDArray[np.float64]) -> dict[str, Margins]:
    """The constants that training labels (N, 4) teach: margins per baseline.

    ``no_crop`` keeps the picture whole; ``centre`` puts a box of the median width and height in the middle; ``median_box`` has the
    median of each margin; ``iou_optimal`` is the constant box of the highest mean IoU.
    """
    margins = boxes.to_margins(true_norm)
    width, height = np.median(true_norm[:, 2:] - true_norm[:, :2], axis=0)
    side, end = (1 - width) / 2, (1 - height) / 2
    constants = {"no_crop": np.zeros(4), "centre": np.array([side, end, side, end]), "median_box": np.median(margins, axis=0)}
    constants["iou_optimal"] = _best_constant(true_norm, list(constants.values()))
    return {name: (float(m[0]), float(m[1]), float(m[2]), float(m[3])) for name, m in constants.items()}


def _best_constant(true_norm: NDArray[np.float64], starts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Margins of the constant box of the highest mean IoU, by coordinate search with a step that halves (to 1/1000 of a side)."""
    sample = true_norm if len(true_norm) <= 5000 else true_norm[np.linspace(0, len(true_norm) - 1, 5000).astype(int)]

    def mean_iou(margins: NDArray[np.float64]) -> float:
        return float(boxes.iou(boxes.from_margins(margins), sample).mean())

    best = max(starts, key=mean_iou).copy()
    value, step = mean_iou(best), 0.08
    while step > 1e-3:
        moves = [best + step * sign * unit for unit in np.eye(4) for sign in (-1, 1)]
        tried = [(mean_iou(np.clip(move, 0, 0.95)), move) for move in moves]
        top, move = max(tried, key=lambda pair: pair[0])
        if top > value + 1e-9:
            best, value = np.clip(move, 0, 0.95), top
        else:
            step /= 2
    return best


def edges_followed(predicted_norm: NDArray[np.float64], true_norm: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Whether each edge moves with the picture: correlation of predicted and true margins, and the ratio of their variances.

    A constant has neither; a model that only leans towards the truth has a ratio well below 1.

    Args:
        predicted_norm, true_norm: (N, 4) boxes in shares of the picture.
    """
    predicted, true = boxes.to_margins(predicted_norm), boxes.to_margins(true_norm)
    spread, wanted = predicted.std(axis=0), true.std(axis=0)
    both = ((predicted - predicted.mean(axis=0)) * (true - true.mean(axis=0))).mean(axis=0)
    correlation = np.where(spread * wanted > 1e-9, both / np.maximum(spread * wanted, 1e-9), 0.0)
    ratio = (spread / np.maximum(wanted, 1e-9)) ** 2
    return {
        name: dict(zip(boxes.EDGES, map(float, values), strict=True))
        for name, values in (("correlation", correlation), ("variance_ratio", ratio))
    }


def skill(iou_mean: float, best_baseline: float) -> float:
    """The share of what the best baseline leaves undone that the model does: (IoU - baseline) / (1 - baseline); 0 is no better.

    >>> round(skill(0.9, 0.5), 3)
    0.8
    """
    return (iou_mean - best_baseline) / max(1 - best_baseline, 1e-9)


def skill_interval(
    model_iou: NDArray[np.float64], baseline_iou: NDArray[np.float64], resamplings: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The 95% interval of the skill by paired bootstrap: pictures (N,) are drawn again, both judged on the same ones.

    Source: Efron 1979; percentile interval.
    """
    skills = []
    for _ in range(resamplings):  # one at a time: all at once take gigabytes on a large dataset
        drawn = rng.integers(0, len(model_iou), len(model_iou))
        skills.append(skill(float(model_iou[drawn].mean()), float(baseline_iou[drawn].mean())))
    low, high = np.percentile(skills, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    new_iou: NDArray[np.float64], old_iou: NDArray[np.float64], resamplings: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The mean of ``new_iou - old_iou`` (N,) on the same pictures, and its 95% interval by paired bootstrap.

    Source: Efron 1979; percentile interval.
    """
    differences = np.asarray(new_iou) - np.asarray(old_iou)
    means = [float(differences[rng.integers(0, len(differences), len(differences))].mean()) for _ in range(resamplings)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)
