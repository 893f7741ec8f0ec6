"""``cropreg demo``: makes scans and crops of the package's photographs, and goes the whole way from them to new crops."""

from __future__ import annotations

import logging
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from cropreg import boxes, report, storage
from cropreg.dataset import read_labels
from cropreg.demo.scans import write_scans
from cropreg.errors import OutputError, UsageError
from cropreg.images import decode_color
from cropreg.pipelines import evaluate, match, predict, train
from cropreg.schema import BoxDataset, read_predictions
from cropreg.settings import EvaluateSettings, MatchSettings, PredictSettings, TrainSettings

log = logging.getLogger(__name__)

_NEW_PHOTOS = ("cat.jpg", "coffee.jpg", "portrait.jpg", "stairs.jpg")  # the model never sees these while it learns
_NUM_PAIRS, _NUM_NEW, _SHOWN = 320, 48, 8
_SEED = 1
# Small enough for two cores in a few minutes from random weights; a real run keeps the defaults and starts from --weights imagenet.
_TRAINING = TrainSettings(weights="none", image_side=96, max_epochs=30, batch_size=16, flip="horizontal")


def run(out: str | None, *, address: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Runs every verb once on made-up scans of real photographs, below the folder ``out``.

    None stands for the first free of cropreg-demo, cropreg-demo-2, and so on.

    Raises:
        OutputError: the folder holds other things. ClusterError: Ray did not start.
    """
    if out is None:
        out = next(name for name in ("cropreg-demo", *(f"cropreg-demo-{n}" for n in range(2, 1000))) if not Path(name).exists())
    if storage.is_remote(out):
        raise UsageError(f"{out}: the demo needs a local folder.")
    folder = Path(out).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder}: this folder holds something already. Give another: cropreg demo --out DIR")
    summary: dict[str, Any] = {"verb": "demo", "code": 0, "out": str(folder), "pairs": _NUM_PAIRS, "new": _NUM_NEW}
    if dry_run:
        return {**summary, "dry_run": True}
    began_s = time.monotonic()
    log.info("1/5 making %d scans with crops, and %d of photographs to keep for the end", _NUM_PAIRS, _NUM_NEW)
    pairs, new = folder / "pairs", folder / "new"
    with as_file(files("cropreg.demo") / "photos") as photos:
        known = sorted(photo for photo in photos.glob("*.jpg") if photo.name not in _NEW_PHOTOS)
        write_scans(known, pairs, _NUM_PAIRS, _SEED)
        write_scans([photos / name for name in _NEW_PHOTOS], new, _NUM_NEW, _SEED + 1)
    log.info("2/5 match: finding every crop in its original")
    for source, dataset in ((pairs, "boxes"), (new, "new-boxes")):
        made = match.run(
            str(source / "originals"), str(source / "crops"), out=str(folder / dataset), settings=MatchSettings(), address=address
        )
        log.info("%s: %s", dataset, made["counts"])
    log.info("3/5 train: %d epochs at most, from random weights", _TRAINING.max_epochs)
    train.run(str(folder / "boxes"), out=str(folder / "run"), settings=_TRAINING, address=address)
    log.info("4/5 evaluate: on scans of photographs it never saw")
    judged = evaluate.run(
        str(folder / "run"), settings=EvaluateSettings(boxes=str(folder / "new-boxes"), split="all"), address=address
    )
    log.info("5/5 predict: cropping those scans")
    cropped = predict.run(
        str(folder / "run"), str(new / "originals"), out=str(folder / "crops"), settings=PredictSettings(), address=address
    )
    sheet = folder / "sheet.png"
    storage.write_whole(str(sheet), _sheet(folder))
    minutes = (time.monotonic() - began_s) / 60
    text = "\n".join(
        [
            judged["text"],
            f"predict: {cropped['counts'].get('accept', 0)} crops written, {cropped['counts'].get('review', 0)} left for review",
            f"\nDone in {minutes:.1f} minutes. Look at {sheet} and {folder / 'run'}/report-new-boxes.html",
            "\nNow with your own pictures:",
            "  cropreg match ORIGINALS CROPS --out boxes",
            "  cropreg train boxes --out run",
            "  cropreg evaluate run",
            "  cropreg predict run NEW_PICTURES --out cropped",
        ]
    )
    return {**summary, "iou_mean": judged["model"]["iou_mean"], "skill": judged["skill"], "text": text}


def _sheet(folder: Path) -> bytes:
    """The contact sheet: the first of the new scans, as they come, with the hand's box and crop and cropreg's."""
    labels = read_labels(BoxDataset.open(str(folder / "new-boxes")), "all")
    truth = dict(zip(labels.original_uris.to_pylist(), labels.boxes_norm, strict=True))
    rows = sorted(read_predictions(str(folder / "crops" / "predictions.parquet")), key=lambda row: row["image_uri"])
    examples = []
    for row in rows[:_SHOWN]:
        uri = row["image_uri"]
        predicted = boxes.normalise([row[k] for k in ("x1", "y1", "x2", "y2")], (row["width"], row["height"]))
        iou = float(boxes.iou(predicted, truth[uri])) if uri in truth else float("nan")
        caption = f"{storage.name_of(uri)}  IoU {iou:.3f}  {row['verdict']}"
        examples.append(report.Example(decode_color(storage.read_bytes(uri), uri), truth.get(uri), np.asarray(predicted), caption))
    return report.sheet_png(examples, columns=2)
