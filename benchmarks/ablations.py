"""What each choice of the regressor is worth: heads, losses, looks and augmentations, one change at a time, over several seeds.

    python benchmarks/ablations.py BOXES TEST --out DIR [--weights FILE] [--seeds 3] [--max-epochs 10] [--batch-size 16] [--image-side 96]
                                   [--no-refine] [--only NAME ...] [--table]

BOXES is a box dataset to learn from, TEST one of other pictures to judge on (all its rows).  Heads are compared with the default, and all
that stands behind the spatial head with that one.  Printed, a row of a table at a time: mean and, in brackets, lowest and highest over the
seeds, of the IoU of the first look alone (its three windows), of the answer, of the share of answers with an IoU of at least 0.9, and of
how well the spread sorts good answers from bad ones: the mean of what is lost (1 - IoU) over the least doubtful pictures, for any number
of them (AURC, lower is better).  A short budget compares beginnings: what learns slowly loses here.

Every seed of a variant has a folder in DIR.  Stopped at any time and started again, the run it was at goes on with its last epoch, and
what is finished is not trained again.  ``--table`` prints what is finished and trains nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from cropreg import boxes, checkpoint, logs, storage
from cropreg.dataset import CropDataset
from cropreg.doubt import risk_coverage
from cropreg.pipelines import train
from cropreg.prediction import Predictor
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

SPATIAL = {"head": "spatial"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "head distribution, smooth L1": {"edges": "smooth-l1"},
    "head marginal": {"head": "marginal"},
    "head pooled": {"head": "pooled"},
    "head spatial": SPATIAL,
    "edges laplace": SPATIAL | {"edges": "laplace"},
    "overlap ciou": SPATIAL | {"overlap": "ciou"},
    "overlap iou": SPATIAL | {"overlap": "iou"},
    "overlap none": SPATIAL | {"overlap": "none"},
    "overlap alone": SPATIAL | {"margin_weight": 0.0},
    "no re-framing": SPATIAL | {"reframe": 0.0},
    "no colour": SPATIAL | {"color": 0.0},
    "stronger colour": SPATIAL | {"color": 0.4},
    "noise": SPATIAL | {"noise": 0.3},
    "turned by up to 1 degree": SPATIAL | {"turn": 1.0},
    "side 64": SPATIAL | {"image_side": 64},
    "side 128": SPATIAL | {"image_side": 128},
    "no dropout": SPATIAL | {"dropout": 0.0},
    "no averaging": SPATIAL | {"averaging": 0.0},
}
COLUMNS = ("first look", "answer", ">= .90", "AURC")
FIGURES = "ablation.json"


def judge(run: Path, data: CropDataset) -> list[float]:
    """The figures of ``COLUMNS`` for a finished run."""
    model, info = checkpoint.load(checkpoint.best_of(str(run)))
    looks = (None, model.refiner) if model.refiner is not None else (None,)
    ious = []
    for refiner in looks:
        model.refiner = refiner
        found = Predictor(model, info).predict_all((data.picture(i) for i in range(len(data))), 32)
        ious.append(boxes.iou(found.boxes_norm, data.labels.boxes_norm))
    doubt = risk_coverage(found.spread.mean(axis=1), 1 - ious[-1])
    return [float(ious[0].mean()), float(ious[-1].mean()), float((ious[-1] >= 0.9).mean()), doubt["aurc"]]


def figures_of(run: Path, trained_on: str, asked: dict[str, Any], data: CropDataset) -> list[float]:
    """The figures of one seed of one variant: read, if it is finished, else trained for and judged."""
    file = run / FIGURES
    asked = {**asked, "boxes": trained_on, "judged_on": data.labels.original_uris[0].as_py(), "judged_rows": len(data)}
    if file.exists():
        known = json.loads(file.read_text())
        if known["asked"] != asked:
            raise SystemExit(f"{file}: these figures are of other settings or data than asked for now. Give another --out.")
        return list(known["figures"])
    settings = {name: value for name, value in asked.items() if name in TrainSettings.model_fields}
    train.run(trained_on, out=str(run), settings=TrainSettings(**settings, num_workers=0, resume=True))
    figures = judge(run, data)
    storage.write_whole(str(file), json.dumps({"asked": asked, "figures": figures}, indent=1).encode())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes")
    parser.add_argument("test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-side", type=int, default=96)
    parser.add_argument("--no-refine", action="store_true", help="train and judge the first look alone, which most variants change")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="; ".join(VARIANTS))
    parser.add_argument("--table", action="store_true", help="print what is finished, train nothing")
    given = parser.parse_args()
    logs.set_up(-1)
    data = CropDataset(BoxDataset.open(given.test), "all", given.image_side)
    print(f"| {given.max_epochs} epochs, {given.image_side} px, {given.seeds} seeds | {' | '.join(COLUMNS)} |")
    print(f"| --- |{' --- |' * len(COLUMNS)}", flush=True)
    for name in given.only:
        figures = []
        for seed in range(given.seeds):
            run = given.out / name.replace(",", "").replace(" ", "-") / str(seed)
            if given.table and not (run / FIGURES).exists():
                continue
            asked = {
                "weights": given.weights, "max_epochs": given.max_epochs, "batch_size": given.batch_size, "image_side": given.image_side,
                "refine": not given.no_refine, "seed": seed, **VARIANTS[name],
            }  # fmt: skip
            figures.append(figures_of(run, given.boxes, asked, data))
        if not figures:
            continue
        missing = f" ({len(figures)} of {given.seeds} seeds)" if len(figures) < given.seeds else ""
        cells = (f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in np.array(figures).T)
        print(f"| {name}{missing} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
