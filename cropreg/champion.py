"""A new model takes the place of the one before only if it is not worse on pictures that trained neither.

Splits are by hash of the original, so the test rows of a dataset that has grown, or was corrected, are the ones that the model before
was not trained on either.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropreg import boxes, checkpoint, storage
from cropreg.cache import Cache
from cropreg.dataset import CropDataset
from cropreg.errors import InputError
from cropreg.metrics import paired_difference
from cropreg.prediction import Predictor
from cropreg.runs import CHALLENGER, CONTEST
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

log = logging.getLogger(__name__)

TOLERATED_IOU = 0.005  # what a mean IoU may be lower by and still count as not worse: less than a person's own noise
_RESAMPLINGS = 2000
_LEAST_ROWS = 2


def check(champion: str | None, counts: Mapping[str, int]) -> None:
    """Raises, before hours of training, when there is no champion, or nothing to judge it on.

    Raises:
        InputError, ModelError: no run there, a damaged one, or no test rows.
    """
    if champion is None:
        return
    checkpoint.load_info(checkpoint.best_of(storage.absolute(champion)))
    if counts["test"] < _LEAST_ROWS:
        raise InputError(
            f"--champion {champion}: the dataset has {counts['test']} found pairs in its split 'test', so nothing can be compared. "
            f"Match more pairs, or leave the flag out."
        )


def contest(dataset: BoxDataset, out: str, settings: TrainSettings, device: torch.device | str) -> None:
    """Judges the new model in ``out`` beside the champion, leaves the better one in ``checkpoints/best``, and writes ``champion.json``.

    The new one stays if the lower end of the 95% interval of its mean difference in IoU is above ``-TOLERATED_IOU``; otherwise it moves
    to ``checkpoints/challenger``.  Does nothing without ``--champion``.
    """
    if settings.champion is None:
        return
    best = checkpoint.best_of(out)
    old = checkpoint.best_of(storage.absolute(settings.champion))
    new_iou, old_iou = (ious(dataset, uri, settings, device) for uri in (best, old))
    difference, low, high = paired_difference(new_iou, old_iou, _RESAMPLINGS, np.random.default_rng(settings.seed))
    stays = low >= -TOLERATED_IOU
    figures: dict[str, Any] = {
        "champion": settings.champion,
        "kept": "new" if stays else "champion",
        "n": len(new_iou),
        "new_iou": float(new_iou.mean()),
        "champion_iou": float(old_iou.mean()),
        "difference": difference,
        "difference_ci": [low, high],
        "tolerated": TOLERATED_IOU,
    }
    if not stays:
        checkpoint.save(storage.join(out, CHALLENGER), *checkpoint.load(best))
        checkpoint.save(best, *checkpoint.load(old))
    storage.write_whole(storage.join(out, CONTEST), json.dumps(figures, indent=1).encode())
    log.info("champion: kept=%s difference=%.4f (95%% %.4f to %.4f) n=%d", figures["kept"], difference, low, high, len(new_iou))


def ious(dataset: BoxDataset, uri: str, settings: TrainSettings, device: torch.device | str) -> NDArray[np.float64]:
    """The IoU (N,) of a checkpoint's boxes on the test rows of a dataset, in their order."""
    predictor = Predictor.open(uri, device)
    cache = Cache(settings.cache_dir, settings.cache_gb)
    data = CropDataset(dataset, "test", predictor.info.architecture.image_side, read_from=settings.from_, cache=cache)
    predictions = predictor.predict_all((data.picture(i) for i in range(len(data))), settings.batch_size)
    return boxes.iou(predictions.boxes_norm, data.labels.boxes_norm)
