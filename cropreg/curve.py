"""The learning curve: the same training on an eighth, a quarter and a half of the pairs, and what it says about having more of them.

A power law a - b n^-c with a at most 1 is put through the mean IoU on the test split.  Four points tell its three numbers badly, so the
answer is what a bootstrap says: test groups are drawn again, and every point is moved by as much as another seed would move it, or by as
much as the points miss the law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cropreg import checkpoint, report, storage
from cropreg.champion import ious
from cropreg.dataset import read_labels
from cropreg.errors import InputError
from cropreg.runs import CURVE, PARTIAL, read_metrics
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

SHARES = (0.125, 0.25, 0.5)  # of the training groups; the run itself is the whole.  Together they cost 7/8 of a training
STEP_IOU = 0.01  # what is asked for: about what one can see of a mean IoU
SEED_SD = 0.005  # by which another seed moves the mean IoU of a run that ended by itself; assumed, not measured
_REACH = 9.0  # times as many pairs again: further than that the law is not believed
_CERTAIN = 10.0  # highest over lowest number of pairs, up to which a number is told
_RESAMPLINGS = 2000
_POWERS = np.geomspace(0.05, 2.0, 60)
_LEAST_TRAIN, _LEAST_TEST = 16, 20


@dataclass(frozen=True)
class Curve:
    """What ``learning_curve.json`` holds.

    Attributes:
        pairs, iou: number of training pairs and mean IoU on the ``n`` test pictures of each training, fewest first.
        doubling: what twice the pairs would add to the mean IoU: median, and 5% and 95% of the bootstrap.
        wanted: pairs beside those there are for ``STEP_IOU`` more, likewise; None where it takes more than nine times as many, or never.
        law: a, b and c of IoU = a - b (n / pairs)^-c for the drawing, pairs being the most there were.
        cut_short: one of the trainings ended with its epochs and not by itself; fewer pairs then mean fewer steps as well.
    """

    pairs: list[int]
    iou: list[float]
    n: int
    doubling: list[float]
    wanted: list[int | None]
    law: list[float]
    cut_short: bool = False


def check(wanted: bool, dataset: BoxDataset, seed: int, num_workers: int) -> None:
    """Raises, before hours of training, when the curve would tell nothing.

    Raises:
        InputError: too few pairs to train on an eighth of them, or to judge on.
    """
    if not wanted:
        return
    few, test = len(read_labels(dataset, "train", SHARES[0], seed)), len(read_labels(dataset, "test"))
    least = max(_LEAST_TRAIN, 2 * num_workers)  # BatchNorm needs two pictures in every worker
    if few < least or test < _LEAST_TEST:
        raise InputError(
            f"--learning-curve: {dataset.uri} has {few} pairs in an eighth of its training groups and {test} in its split 'test', and the "
            f"curve needs {least} and {_LEAST_TEST}. Match more pairs, or leave the flag out."
        )


def place_of(out: str, share: float) -> str:
    """Where a training on a share of the pairs is kept until the curve is drawn."""
    return storage.join(out, PARTIAL, f"{share:g}")


def draw(dataset: BoxDataset, out: str, settings: TrainSettings, device: torch.device | str) -> None:
    """Judges the trainings below ``out`` on the test split, writes ``learning_curve.json`` and ``.png``, and removes the partial ones."""
    trained = [(share, place_of(out, share)) for share in SHARES] + [(1.0, out)]
    pairs = [len(read_labels(dataset, "train", share, settings.seed)) for share, _ in trained]
    judged = np.stack([ious(dataset, checkpoint.best_of(uri), settings, device) for _, uri in trained])
    groups = read_labels(dataset, "test").groups.to_pylist()
    cut_short = any(len(read_metrics(uri)) >= settings.max_epochs for _, uri in trained)
    curve = replace(measure(pairs, judged, groups, np.random.default_rng(settings.seed)), cut_short=cut_short)
    words = in_words(curve)
    storage.write_whole(storage.join(out, f"{CURVE}.png"), report.learning_png(curve.pairs, curve.iou, curve.law, words))
    storage.write_whole(storage.join(out, f"{CURVE}.json"), json.dumps({**asdict(curve), "in_words": words}, indent=1).encode())
    storage.remove(storage.join(out, PARTIAL))


def measure(pairs: Sequence[int], judged: NDArray[np.float64], groups: Sequence[str], rng: np.random.Generator) -> Curve:
    """What the IoU (K, N) of K trainings on ``pairs`` (K) pairs, fewest first, judged on the same N pictures, says about more pairs."""
    means, most = judged.mean(axis=1), pairs[-1]
    times_pairs = np.asarray(pairs) / most
    law = [float(v[0]) for v in _laws(times_pairs, means[None])]
    missed = ((means - law[0] + law[1] * times_pairs ** -law[2]) ** 2).sum() / max(len(pairs) - len(law), 1)
    noise = rng.normal(0, max(SEED_SD, math.sqrt(missed)), (_RESAMPLINGS, len(pairs)))
    _, b, c = _laws(times_pairs, _drawn_again(judged, groups, rng) + noise)
    doubling = b * (1 - 2.0**-c)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        times = np.where(b > STEP_IOU, (1 - STEP_IOU / b) ** (-1 / c) - 1, np.inf)
    low_to_high = [np.quantile(times, q, method="inverted_cdf") for q in (0.5, 0.05, 0.95)]
    return Curve(
        pairs=[int(n) for n in pairs],
        iou=[float(v) for v in means],
        n=judged.shape[1],
        doubling=[float(v) for v in np.quantile(doubling, [0.5, 0.05, 0.95])],
        wanted=[None if v > _REACH else _rounded(v * most) for v in low_to_high],
        law=law,
    )


def in_words(curve: Curve) -> str:
    """What a curve says, in a sentence or two, or that it cannot tell."""
    points = ", ".join(f"{iou:.3f} with {n}" for n, iou in zip(curve.pairs, curve.iou, strict=True))
    told = f"IoU on {curve.n} test pictures: {points} pairs."
    (_, low, high), (about, fewest, most) = curve.doubling, curve.wanted
    if high < STEP_IOU:
        told += f" Twice as many would add {high:.3f} at the most: more pairs are not what this model lacks."
    elif about is not None and fewest is not None and most is not None and most <= _CERTAIN * fewest:
        told += f" About {about:,} more ({fewest:,} to {most:,}) would add {STEP_IOU:g}, with the same settings."
    else:
        least = "" if fewest is None else f", but hardly fewer than {fewest:,}"
        told += f" How many more would add {STEP_IOU:g} cannot be told from this{least}; twice as many would add {low:.3f} to {high:.3f}."
    if curve.cut_short:
        told += " Trainings ended with their epochs (--max-epochs), the smaller after fewer steps: more epochs may bring as much."
    return told


def _drawn_again(judged: NDArray[np.float64], groups: Sequence[str], rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean IoU (resamplings, K) over groups of pictures drawn again, the same ones for all K trainings.

    Pictures of a group are alike, so they are drawn together.  Source: Efron 1979.
    """
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(of)
    sums = np.stack([np.bincount(of, weights=row) for row in judged])  # (K, groups)
    means = np.empty((_RESAMPLINGS, len(judged)))
    for i in range(_RESAMPLINGS):  # one at a time: all at once take gigabytes on a large dataset
        drawn = rng.integers(0, len(sizes), len(sizes))
        means[i] = sums[:, drawn].sum(axis=1) / sizes[drawn].sum()
    return means


def _laws(times: NDArray[np.float64], means: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The power laws a - b t^-c nearest to ``means`` (B, K) at ``times`` (K): a at most 1, b at least 0, c of a list; three arrays (B)."""
    best = np.full(len(means), np.inf)
    law = np.zeros((3, len(means)))
    for power in _POWERS:
        x = times**-power
        middle, off = means.mean(axis=1), x - x.mean()
        b = np.maximum(-(means @ off) / (off @ off), 0.0)
        a = middle + b * x.mean()
        over = a > 1
        b = np.where(over, ((1 - means) @ x) / (x @ x), b)
        a = np.minimum(a, 1.0)
        rest = ((means - (a[:, None] - b[:, None] * x)) ** 2).sum(axis=1)
        nearer = rest < best
        best = np.where(nearer, rest, best)
        law = np.where(nearer, np.stack([a, b, np.full(len(means), power)]), law)
    return law[0], law[1], law[2]


def _rounded(number: float) -> int:
    """A number of pairs to two digits: more would pretend to know it."""
    return int(float(f"{max(number, 1):.2g}"))
