"""What each choice of the regressor is worth: heads, losses, looks and augmentations, one change at a time, over several seeds.

    python benchmarks/ablations.py BOXES TEST --out DIR [--weights FILE] [--seeds 3] [--max-epochs 8] [--image-side 96] [--only NAME ...]

BOXES is a box dataset to learn from, TEST one of other pictures to judge on (all its rows).  Each variant differs from the first one in
the settings it names.  Printed, a row of a table at a time: mean and, in brackets, lowest and highest over the seeds, of the IoU of the
first look alone, of the answer, and of the share of answers with an IoU of at least 0.9.  A short budget compares beginnings: what
learns slowly loses here.  Runs are kept in DIR; what is finished is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cropreg import boxes, checkpoint, logs
from cropreg.dataset import CropDataset
from cropreg.pipelines import train
from cropreg.prediction import Predictor
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "head pooled": {"head": "pooled"},
    "overlap ciou": {"overlap": "ciou"},
    "overlap iou": {"overlap": "iou"},
    "overlap none": {"overlap": "none"},
    "margins alone unweighted": {"overlap": "none", "margin_weight": 1.0},
    "overlap alone": {"margin_weight": 0.0},
    "no re-framing": {"reframe": 0.0},
    "no colour": {"color": 0.0},
    "stronger colour": {"color": 0.4},
    "no dropout": {"dropout": 0.0},
    "no averaging": {"averaging": 0.0},
}


def judge(run: Path, data: CropDataset) -> tuple[float, float, float]:
    """IoU of the first look (its three windows), IoU of the answer, share of answers of at least 0.9."""
    model, info = checkpoint.load(checkpoint.best_of(str(run)))
    ious = []
    for refiner in (None, model.refiner):
        model.refiner = refiner
        found = Predictor(model, info).predict_all((data.picture(i) for i in range(len(data))), 32)
        ious.append(boxes.iou(found.boxes_norm, data.labels.boxes_norm))
    return float(ious[0].mean()), float(ious[1].mean()), float((ious[1] >= 0.9).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes")
    parser.add_argument("test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--image-side", type=int, default=96)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    given = parser.parse_args()
    logs.set_up(-1)
    data = CropDataset(BoxDataset.open(given.test), "all", given.image_side)
    print(f"| {given.max_epochs} epochs, {given.image_side} px, {given.seeds} seeds | first look | answer | >= .90 |")
    print("| --- | --- | --- | --- |", flush=True)
    for name in given.only:
        figures = []
        for seed in range(given.seeds):
            settings = TrainSettings(
                weights=given.weights, max_epochs=given.max_epochs, image_side=given.image_side, num_workers=0, seed=seed, resume=True,
                **VARIANTS[name],
            )  # fmt: skip
            run = given.out / name.replace(" ", "-") / str(seed)
            train.run(given.boxes, out=str(run), settings=settings)
            figures.append(judge(run, data))
        cells = (f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in np.array(figures).T)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
