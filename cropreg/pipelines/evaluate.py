"""``cropreg evaluate``: the model beside the baselines on labelled pictures, and a report to look at."""

from __future__ import annotations

import json
import logging
from typing import Any

import cv2
import numpy as np
import ray.data
from numpy.typing import NDArray

from cropreg import boxes as boxmath
from cropreg import report, storage
from cropreg.dataset import CropDataset, Labels, read_labels
from cropreg.errors import InputError
from cropreg.evaluation import evaluate, table
from cropreg.logs import Progress
from cropreg.metrics import copy_nearest
from cropreg.pipelines import cluster
from cropreg.prediction import Predictions, Predictor
from cropreg.runs import CURVE
from cropreg.schema import BoxDataset, fingerprint
from cropreg.settings import EvaluateSettings
from cropreg.strips import OUTWARD

log = logging.getLogger(__name__)

_SHOWN = 12
_HALVED = 100  # pictures asked again at half their size


def run(run_uri: str, *, settings: EvaluateSettings, address: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Judges the run's best checkpoint, writes ``evaluation.json`` and the report into the run, and returns the figures.

    Judging on another dataset than the run's own writes ``evaluation-<its name>.json`` and so on, and leaves the run's own figures.

    Raises:
        InputError: no run, no dataset, or no rows in the split. ModelError: the checkpoint is damaged. ClusterError: Ray failed.
    """
    run_uri = storage.absolute(run_uri)
    predictor = Predictor.open(run_uri)
    trained_on = _boxes_of(run_uri)
    uri = storage.absolute(settings.boxes) if settings.boxes else trained_on
    dataset = BoxDataset.open(uri)
    data = CropDataset(dataset, settings.split, predictor.info.architecture.image_side, read_from=settings.from_)
    if len(data) == 0:
        raise InputError(f"{uri}: no found pair in the split {settings.split!r}. Use --split all, or match more pairs.")
    summary: dict[str, Any] = {"verb": "evaluate", "out": run_uri, "boxes": uri, "split": settings.split, "n": len(data)}
    if dry_run:
        return {**summary, "code": 0, "dry_run": True}
    predictions, halved_norm = _predict(run_uri, predictor, dataset, len(data), settings, address)
    truth = data.labels.boxes_norm
    result = evaluate(
        predictions.boxes_norm,
        predictions.spread,
        truth,
        predictor.info.baselines,
        predictor.info.calibration,
        resamplings=settings.bootstrap,
        rng=np.random.default_rng(settings.seed),
        sizes_wh=data.labels.sizes_wh,
        neighbour_norm=_copied(dataset, data.labels, trained_on),
        halved_norm=halved_norm,
    )
    result |= {"split": settings.split, "boxes": uri, "checkpoint_epoch": predictor.info.epoch}
    if np.isfinite(predictions.unlike).all():
        result["unlike"] = float((predictions.unlike > 1).mean())
    suffix = "" if uri == trained_on else f"-{storage.name_of(uri)}"
    _write(run_uri, suffix, result, data, predictions)
    return {**summary, "code": 0, **result, "text": table(result)}


def _copied(dataset: BoxDataset, labels: Labels, trained_on: str) -> NDArray[np.float64] | None:
    """Of each picture the crop of the training picture that looks most alike; None where the training pictures cannot be asked."""
    try:
        taught = dataset if trained_on == dataset.uri else BoxDataset.open(trained_on)
    except InputError as error:
        log.warning("no crop of the nearest picture to compare with: %s", error)
        return None
    known = read_labels(taught, "train")
    hashes, known_hashes = (_hashes(of, rows) for of, rows in ((dataset, labels), (taught, known)))
    if hashes is None or known_hashes is None:
        return None
    groups, known_groups = (np.array(rows.groups.to_pylist(), object) for rows in (labels, known))
    if len(np.unique(known_groups)) < 2:
        return None
    return copy_nearest(hashes, groups, known_hashes, known_groups, known.boxes_norm)


def _hashes(dataset: BoxDataset, labels: Labels) -> NDArray[np.uint64] | None:
    """The perceptual hashes of the labels' originals, in their order; None if one has none."""
    table = dataset.pairs(["pair_id", "original_phash"])
    by_pair = dict(zip(table["pair_id"].to_pylist(), table["original_phash"].to_pylist(), strict=True))
    found = [by_pair[pair_id] for pair_id in labels.pair_ids.to_pylist()]
    return None if None in found else np.array(found, np.uint64)


def _boxes_of(run_uri: str) -> str:
    name = storage.join(run_uri, "run.json")
    try:
        boxes: str = json.loads(storage.read_bytes(name))["boxes"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: no run here, or a damaged one ({error}). Train one: cropreg train BOXES --out RUN") from error
    return boxes


def _predict(
    run_uri: str, predictor: Predictor, dataset: BoxDataset, rows: int, settings: EvaluateSettings, address: str | None
) -> tuple[Predictions, NDArray[np.float64]]:
    """The model's boxes for all rows, in their order, and (n, 4) for half-size copies of the first; computed over the cluster."""
    cluster.connect(address)
    cluster.check_shared(
        storage.join(uri, name) for uri, name in ((run_uri, "run.json"), (dataset.uri, dataset.parts("pairs")[0].file))
    )
    size = settings.batch_size
    blocks = max(1, min(-(-rows // size), max(32, int(4 * cluster.total("CPU")))))
    data = ray.data.range(rows, override_num_blocks=blocks)
    key = fingerprint([run_uri, predictor.info.sha256, dataset.fingerprint, settings.split, settings.from_])
    on_gpu = cluster.total("GPU") >= 1
    same: dict[str, Any] = {"key": key, "run_uri": run_uri, "dataset": dataset, "settings": settings, "on_gpu": on_gpu}
    data = data.map_batches(
        _predict_rows, batch_size=size, fn_kwargs=same, compute=cluster.at_a_time(None, blocks), num_gpus=1 if on_gpu else None
    )
    found, spread, unlike, halved = np.empty((rows, 4)), np.empty((rows, 4)), np.empty(rows), np.empty((rows, 4))
    with cluster.faults_named(), Progress("evaluate", rows, "pictures") as progress:
        for batch in data.iter_batches(batch_size=size, batch_format="numpy"):
            at = batch["row"]
            found[at], spread[at], unlike[at], halved[at] = batch["box"], batch["spread"], batch["unlike"], batch["halved"]
            progress.advance(len(batch["row"]))
    return Predictions(found, spread, unlike), halved[:_HALVED]


_open: dict[str, tuple[Predictor, CropDataset]] = {}  # one a worker process, which Ray uses for many batches


def _predict_rows(
    batch: dict[str, NDArray[Any]], key: str, run_uri: str, dataset: BoxDataset, settings: EvaluateSettings, on_gpu: bool
) -> dict[str, NDArray[Any]]:
    if key not in _open:
        _open.clear()
        predictor = Predictor.open(run_uri, "cuda" if on_gpu else "cpu")
        side = predictor.info.architecture.image_side
        _open[key] = predictor, CropDataset(dataset, settings.split, side, read_from=settings.from_)
    predictor, data = _open[key]
    pictures = [data.picture(int(row)) for row in batch["id"]]
    found = predictor.predict(pictures)
    halved = found.boxes_norm.copy()
    if len(asked := np.flatnonzero(batch["id"] < _HALVED)):
        halved[asked] = predictor.predict([_half(pictures[i]) for i in asked]).boxes_norm
    return {"row": batch["id"], "box": found.boxes_norm, "spread": found.spread, "unlike": found.unlike, "halved": halved}


def _half(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) at half its size."""
    height, width = pixels.shape[:2]
    return np.asarray(cv2.resize(pixels, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA), np.uint8)


def _write(run_uri: str, suffix: str, result: dict[str, Any], data: CropDataset, predictions: Predictions) -> None:
    def put(name: str, content: bytes) -> None:
        stem, _, ending = name.rpartition(".")
        storage.write_whole(storage.join(run_uri, f"{stem}{suffix}.{ending}"), content)

    iou = boxmath.iou(predictions.boxes_norm, data.labels.boxes_norm)
    order = np.argsort(-iou, kind="stable")
    count = min(_SHOWN, len(order))
    pictures: dict[str, tuple[str, bytes]] = {}
    for title, file in (("Training", "curves.png"), ("Learning curve", f"{CURVE}.png")):
        if storage.exists(drawn := storage.join(run_uri, file)):
            pictures[title] = ("image/png", storage.read_bytes(drawn))
    shift = (predictions.boxes_norm - data.labels.boxes_norm) * OUTWARD
    pictures["Where the edges lie"] = ("image/png", report.shifts_png(shift))
    pictures["Doubt and confidence"] = ("image/png", report.doubt_png(result["doubt"], result["reliability"]))
    for name, rows in (("worst", order[-count:][::-1]), ("best", order[:count])):
        examples = [
            report.Example(
                data.picture(int(i)),
                data.labels.boxes_norm[i],
                predictions.boxes_norm[i],
                f"IoU {iou[i]:.3f}  {storage.name_of(data.labels.original_uris[int(i)].as_py())}",
            )
            for i in rows
        ]
        content = report.sheet_jpeg(examples)
        put(f"{name}.jpg", content)
        pictures[f"{name.capitalize()} pictures"] = ("image/jpeg", content)
    put("report.html", report.page(f"cropreg: {storage.name_of(run_uri)}", result, pictures))
    put("evaluation.json", json.dumps(result, indent=1).encode())
