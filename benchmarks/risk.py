"""What `cropreg predict --max-risk` promises beside what comes true, when it is promised many times over.

    python benchmarks/risk.py RUN BOXES [--seeds 20] [--other DIR ...] [--batch-size 16]

BOXES is a box dataset of pictures that RUN has not learned from, 800 or more; all its rows are used, whatever their split.  The model
predicts each once.  Then, for every seed, they are split anew: some stand for val, some for calib, and the rest are the new pictures that
the promise made from the first two is held against.  The model is the same each time and nothing is trained: what varies is the chance
that a promise is about.

Printed, for plans, risks and numbers of calib pairs: in how many seeds it could be promised; of the new pictures the share written, and
of those the share that lost more than the tolerance (mean over seeds, and the worst); in how many seeds that share was above what was
promised, which 5% of all may be, and somewhat more, since the new pictures are few and a share of few is a matter of chance itself; and
how far edges were moved outward on average, in percent of the side.

--other: folders of pictures of other kinds: how many of them are unlike those that RUN learned from, beside the rows of BOXES.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cropreg import promise
from cropreg.checkpoint import Calibration
from cropreg.dataset import CropDataset
from cropreg.errors import UsageError
from cropreg.images import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from cropreg.prediction import Predictions, Predictor, read_small
from cropreg.schema import BoxDataset
from cropreg.strips import OUTWARD

VAL_ROWS = 100
PLANS = [  # lean, tolerance, max risk, calib pairs
    ("safe", 0.005, 0.05, 100),
    ("safe", 0.005, 0.05, 400),
    ("safe", 0.005, 0.02, 400),
    ("safe", 0.005, 0.01, 400),
    ("even", 0.03, 0.05, 400),
    ("even", 0.02, 0.10, 400),
    ("even", 0.02, 0.05, 400),
    ("even", 0.005, 0.05, 400),
]


def promised(plan: tuple[str, float, float, int], predictions: Predictions, true: NDArray[np.float64], seeds: int) -> str:
    """One line of the table: the plan promised ``seeds`` times over, and what came true."""
    lean, tolerance, max_risk, calib_rows = plan
    made, written_shares, lost_shares, moved = 0, [], [], []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(true))
        val, calib, new = np.split(order, [VAL_ROWS, VAL_ROWS + calib_rows])
        how = Calibration(
            rows=calib_rows, coverage=0.9, spread_floor=1e-3, edge_factors=None, confidence_spreads=(), confidence_values=(),
            val=known(predictions, true, val), calib=known(predictions, true, calib),
        )  # fmt: skip
        try:
            kept = promise.decide(how, max_risk, tolerance, lean)
        except UsageError:
            continue
        made += 1
        boxes, spread = predictions.boxes_norm[new], predictions.spread[new]
        cut, written = kept.boxes(boxes, spread), spread.mean(axis=1) <= kept.doubt_limit
        lost = (OUTWARD * (true[new] - cut) > tolerance).any(axis=1)
        written_shares.append(written.mean())
        lost_shares.append(lost[written].mean() if written.any() else 0.0)
        moved.append(float((OUTWARD * (cut - boxes))[written].mean()) if written.any() else 0.0)
    line = f"{lean:5s} {100 * tolerance:8.1f}% {100 * max_risk:6.0f}% {calib_rows:6d} {made:6d}/{seeds}"
    if made:
        above = sum(share > max_risk for share in lost_shares)
        line += f" {100 * np.mean(written_shares):8.1f}% {100 * np.mean(lost_shares):7.2f}% {100 * max(lost_shares):7.2f}%"
        line += f" {above:6d}/{made} {100 * np.mean(moved):7.2f}%"
    return line


def known(predictions: Predictions, true: NDArray[np.float64], rows: NDArray[np.int64]) -> promise.Outcomes:
    return promise.outcomes(predictions.boxes_norm[rows], predictions.spread[rows], true[rows], [str(row) for row in rows])


def pictures_in(folder: Path, long_px: int) -> Iterator[NDArray[np.uint8]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield read_small(path.read_bytes(), path.name, DEFAULT_MAX_PIXELS, long_px).pixels


def told(name: str, unlike: NDArray[np.float64]) -> str:
    low, middle, high = np.percentile(unlike, [5, 50, 95])
    return f"{name:24s} {len(unlike):6d} {100 * (unlike > 1).mean():7.1f}% {low:8.2f} {middle:8.2f} {high:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("boxes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--batch-size", type=int, default=16)
    o = parser.parse_args()
    predictor = Predictor.open(o.run)
    data = CropDataset(BoxDataset.open(o.boxes), "all", predictor.info.architecture.image_side)
    if len(data) < 2 * VAL_ROWS + max(rows for *_, rows in PLANS):
        parser.error(f"{o.boxes}: {len(data)} found pairs are too few; give 800 or more")
    predictions = predictor.predict_all(map(data.picture, range(len(data))), o.batch_size)
    print(f"{len(data)} pictures, of which {VAL_ROWS} stand for val; {o.seeds} seeds; {promise.SURENESS:.0%} sure\n")
    print("lean  tolerance  risk  calib promised   written    lost   worst    above   moved")
    for plan in PLANS:
        print(promised(plan, predictions, data.labels.boxes_norm, o.seeds), flush=True)
    print("\nunlike the run's pictures  n   unlike   5%      median      95%   (in multiples of the limit)")
    print(told("BOXES", predictions.unlike))
    for folder in o.other:
        print(
            told(folder.name, predictor.predict_all(pictures_in(folder, predictor.info.seen_px), o.batch_size).unlike), flush=True
        )


if __name__ == "__main__":
    main()
