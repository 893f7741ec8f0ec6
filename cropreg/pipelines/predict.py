"""``cropreg predict``: crops new pictures over the cluster and says of each what was done and how sure it is."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from cropreg import checkpoint, constraints, corrections, cropping, export, output, reviews, storage, writing
from cropreg.boxes import EDGES, Box
from cropreg.checkpoint import CheckpointInfo
from cropreg.constraints import Constraints
from cropreg.cropping import MOVED
from cropreg.errors import ClusterError, InputError, UnreadableImage, UsageError
from cropreg.images import IMAGE_SUFFIXES
from cropreg.interchange import exports
from cropreg.judging import Judge
from cropreg.logs import Progress
from cropreg.pipelines import cluster
from cropreg.prediction import Predictor, SmallPicture, read_small
from cropreg.schema import ACCEPT, FAILED, PREDICTIONS, REVIEW, fingerprint, parquet_bytes, top_reasons
from cropreg.settings import PredictSettings
from cropreg.storage import Entry, Lease
from cropreg.strips import OUTWARD
from cropreg.watching import settled

log = logging.getLogger(__name__)

_NO_PX = 1e-3  # a box that was whole pixels before its coordinates were divided and multiplied again still is


def run(
    run_uri: str,
    images: str | Sequence[str],
    *,
    out: str,
    settings: PredictSettings,
    address: str | None = None,
    dry_run: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """Crops every picture below ``images`` into ``out`` and writes ``predictions.parquet`` and ``.csv`` there.

    ``run_uri`` is a run, a checkpoint, or an exported model file.  ``images`` may also be paths of pictures on this machine; ``out``
    then mirrors what lies below the folder they share.

    What an earlier run of the same model has done is kept and not computed again; failed pictures are tried again.  With
    ``settings.watch`` it goes on looking for new pictures, ``sleep`` between two looks, until Ctrl-C.

    Raises:
        UsageError: ``out`` holds ``images``, or the model cannot keep ``--max-risk``. InputError: no pictures, or no run.
        OutputError: ``out`` holds another model's crops.
        ModelError: the checkpoint is damaged. ClusterError: Ray failed.
    """
    run_uri, out = storage.absolute(run_uri), storage.absolute(out)
    named = None if isinstance(images, str) else [storage.absolute(path) for path in images if path.strip()]
    images = storage.absolute(images) if isinstance(images, str) else _shared_folder(named or [])
    if f"{images}/".startswith(f"{out}/"):
        raise UsageError(f"{out}: crops must go to a folder that does not hold the originals, which are never touched.")
    if settings.watch and named is not None:
        raise UsageError("--watch needs a folder to look at, not a list of pictures.")
    formats = exports.parse_formats(settings.export_)
    _wanted(settings)
    if settings.jpeg_lossless:
        writing.require_jpegtran()
    promised = Judge.of(_info(run_uri), settings).promise if Judge.asks_more_of_the_model(settings) else None
    storage.refuse_if_held(out)
    job = _Job(run_uri, images, out, _model_id(run_uri, settings), settings, formats, address)
    entries = _listed(job) if named is None else sorted(_entries(named, images), key=lambda e: e.relative)
    if not entries and not settings.watch:
        raise InputError(
            f"{images}: no pictures here. cropreg reads JPEG, PNG, WebP, TIFF, AVIF and others, by their usual endings."
        )
    finished, unfinished = (output.at_home(rows, out, entries) for rows in output.earlier(out))
    if not settings.overwrite:
        output.refuse_others(out, job.model_id, [*finished, *unfinished])
    # Writing again starts anew, but goes on where it was itself interrupted.
    done = output.done([*unfinished] if settings.overwrite else [*finished, *unfinished], job.model_id, entries)
    judged = reviews.in_effect(reviews.read(out))
    taken_back: dict[str, dict[str, Any]] = {}
    if settings.apply_reviews:  # of a row whose review was taken back, only the model knows what it was
        taken_back = {uri: row for uri, row in done.items() if row["reviewed_by"] and not corrections.holds(judged.get(uri), row)}
        done = {uri: row for uri, row in done.items() if uri not in taken_back}
        job = replace(job, taken_back=frozenset(taken_back))
    elif judged and settings.overwrite:
        log.warning("reviewed=%d pictures get the model's crop again; --apply-reviews keeps what a person decided", len(judged))
    summary: dict[str, Any] = {"verb": "predict", "out": out, "pictures": len(entries), "computed": len(entries) - len(done)}
    if promised is not None:
        summary["promise"] = promised.in_words()
        log.info("promise: %s", summary["promise"])
    job = replace(job, apart=tuple(output.apart([*finished, *unfinished], job.model_id, out, entries)))
    if job.apart:
        summary["apart"] = len(job.apart)
        log.info("apart=%d crops in %s are of pictures that are not in %s: they and their rows stay", len(job.apart), out, images)
    if dry_run:
        return {**summary, "code": 0, "dry_run": True}
    replaced = [*finished, *unfinished] if settings.overwrite else []
    with storage.held(out, "predict") as lease:
        for uri in {row["crop_uri"] for row in taken_back.values()} - {None}:  # or it would stand where the model's goes
            storage.remove(uri)
        if settings.watch:
            rows, more = _watch(job, entries, done, replaced, lease, sleep)
            summary["pictures"], summary["computed"] = len(rows), len(rows) - len(done)
        else:
            rows, more = _crop(job, entries, done, replaced, lease)
    counts = Counter(str(row["verdict"]) for row in rows)
    summary |= {"code": 0, **more, "counts": dict(counts)}
    if any(row["adjusted"] for row in rows):
        summary["adjusted"] = sum(bool(row["adjusted"]) for row in rows)
    summary["top_reasons"] = top_reasons(row for row in rows if row["verdict"] == FAILED)
    if rows and counts[FAILED] / len(rows) > settings.max_bad_share:
        summary["code"] = 6
        summary["message"] = (
            f"{counts[FAILED]} of {len(rows)} pictures failed, more than the share of {settings.max_bad_share:g} that --max-bad-share "
            f"allows. Every one stands with its reason in {storage.join(out, 'predictions.csv')}."
        )
    return summary


@dataclass(frozen=True)
class _Job:
    """What stays the same from one look at the pictures to the next."""

    run_uri: str
    images: str
    out: str
    model_id: str
    settings: PredictSettings
    formats: tuple[str, ...]
    address: str | None
    taken_back: frozenset[str] = frozenset()  # pictures whose review was
    apart: tuple[dict[str, Any], ...] = ()  # rows of pictures that are not among ``images``, which stay


def _listed(job: _Job) -> list[Entry]:
    return sorted(storage.list_files(job.images, IMAGE_SUFFIXES, skip=(job.out,)), key=lambda e: e.relative)


def _wanted(settings: PredictSettings) -> Constraints | None:
    return constraints.parse(settings.aspect, settings.min_size, settings.pad, settings.max_trim)


def _crop(
    job: _Job, entries: Sequence[Entry], done: Mapping[str, dict[str, Any]], replaced: Sequence[dict[str, Any]], lease: Lease
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Crops the entries that are not done, and writes the tables and exports of all; returns the rows, and counts for the summary.

    Crops of the ``replaced`` rows that the model no longer makes are removed; not those of pictures that cannot be read any more, or
    that are not among the entries.
    """
    settings, out, more = job.settings, job.out, dict[str, Any]()
    todo = [entry for entry in entries if entry.uri not in done]
    rows = list(done.values()) + (_predict(todo, job.run_uri, out, job.model_id, settings, job.address) if todo else [])
    lease.check()
    told = {row["image_uri"] for row in rows if row["verdict"] != FAILED}  # of others the earlier crop may be all that is left
    for uri in {row["crop_uri"] for row in replaced if row["image_uri"] in told} - {row["crop_uri"] for row in rows} - {None}:
        storage.remove(uri)
    names = {entry.uri: entry.relative for entry in entries}
    if settings.apply_reviews:
        more["reviewed"] = corrections.apply(rows, reviews.in_effect(reviews.read(out)), names, out, settings)
    here, crops = {row["image_uri"] for row in rows}, {row["crop_uri"] for row in rows}
    apart = [row for row in job.apart if row["image_uri"] not in here and row["crop_uri"] not in crops]
    output.write_tables(out, sorted([*rows, *apart], key=lambda r: str(r["image_uri"])))
    if job.formats:
        more["exports"] = exports.write(
            job.formats,
            {names[row["image_uri"]]: row for row in rows},
            job.images,
            out,
            doubtful=settings.all,
            overwrite=settings.overwrite,
            max_pixels=settings.max_pixels,
            taken_back={names[uri] for uri in job.taken_back & names.keys()},
        )
    return rows, more


def _watch(
    job: _Job,
    entries: Sequence[Entry],
    done: Mapping[str, dict[str, Any]],
    replaced: Sequence[dict[str, Any]],
    lease: Lease,
    sleep: Callable[[float], object],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Crops pictures as they come, until Ctrl-C; what is finished is in the tables after each round."""
    known = {entry.uri: entry for entry in entries if entry.uri in done}
    rows, more = list(done.values()), dict[str, Any]()
    log.info("watching=%s every_s=%g; Ctrl-C ends it", job.images, job.settings.watch_interval_s)
    for whole in settled(partial(_listed, job), job.settings.watch_interval_s, sleep):
        lease.check()
        stamps = {row["image_uri"]: row["stamp"] for row in rows}
        new = {entry.uri: entry for entry in whole if stamps.get(entry.uri) != f"{job.model_id}/{entry.stamp}"}
        if not new:
            continue
        known |= new
        kept = {row["image_uri"]: row for row in rows if row["image_uri"] not in new}
        rows, more = _crop(job, list(known.values()), kept, replaced, lease)
        # The next rounds add to what this one wrote.
        replaced, job = [], replace(job, settings=job.settings.model_copy(update={"overwrite": False}))
        log.info("watching=%s pictures=%d new=%d", job.images, len(rows), len(new))
    return rows, more


def _shared_folder(uris: Sequence[str]) -> str:
    """The deepest folder that holds all these pictures."""
    if not uris:
        raise InputError("no pictures: the list of paths is empty.")
    remote = next((uri for uri in uris if storage.is_remote(uri)), None)
    if remote:
        raise UsageError(f"{remote}: a list may only name pictures on this machine. Give the folder instead.")
    return storage.path_to_uri(os.path.commonpath([os.path.dirname(storage.local_path(uri)) for uri in uris]))


def _entries(uris: Sequence[str], folder: str) -> list[Entry]:
    """Named pictures as a listing of ``folder`` would give them; one that is not there fails later, alone."""
    entries = []
    for uri in dict.fromkeys(uris):
        path = storage.local_path(uri)
        try:
            status = os.stat(path)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # ValueError: a name with a zero byte in it
            size, mtime_ns = 0, 0
        entries.append(Entry(os.path.relpath(path, storage.local_path(folder)), uri, size, mtime_ns))
    return entries


def _model_id(run_uri: str, settings: PredictSettings) -> str:
    """What decides the result: the weights, their calibration, and the settings that change crops."""
    fields = {"all", "min_confidence", "quality", "metadata"}
    later = {"aspect", "min_size", "pad", "max_trim", "jpeg_lossless", "jpeg_snap", "max_risk", "tolerance", "lean"}
    # at rest the later ones leave the fingerprint as it was
    if export.is_onnx(run_uri):
        model: list[Any] = [hashlib.sha256(export.read_onnx(run_uri)).hexdigest()]
    else:
        info = checkpoint.load_info(checkpoint.best_of(run_uri))
        model = [info.sha256, info.calibration and info.calibration.model_dump()]
    return fingerprint(
        [*model, {**settings.model_dump(include=fields), **settings.model_dump(include=later, exclude_defaults=True)}]
    )


def _info(run_uri: str) -> CheckpointInfo:
    return export.open_onnx(run_uri).info if export.is_onnx(run_uri) else checkpoint.load_info(checkpoint.best_of(run_uri))


def _predict(
    todo: Sequence[Entry], run_uri: str, out: str, model_id: str, settings: PredictSettings, address: str | None
) -> list[dict[str, Any]]:
    cluster.connect(address)
    cluster.check_shared([storage.join(run_uri, "run.json"), *(entry.uri for entry in todo)], out)
    if settings.use_gpu and cluster.total("GPU") < 1 and not cluster.may_grow(address):
        raise ClusterError("--use-gpu: Ray finds no GPU on this machine. Leave the flag out.")
    table = pa.Table.from_pylist([{"uri": e.uri, "relative": storage.path_to_uri(e.relative), "stamp": e.stamp} for e in todo])
    size = settings.batch_size
    if not settings.use_gpu:  # at least four tasks a CPU, so that none waits long for the last; and a CPU gains little by batches
        size = max(1, min(size, len(todo) // (4 * max(1, int(cluster.total("CPU"))))))
    num_tasks = math.ceil(len(todo) / size)
    data = ray.data.from_arrow(table, override_num_blocks=num_tasks)
    data = data.map_batches(
        _predict_batch,
        batch_size=size,
        batch_format="pyarrow",
        fn_kwargs={"run_uri": run_uri, "out": out, "model_id": model_id, "settings": settings},
        compute=cluster.at_a_time(settings.concurrency, num_tasks),
        num_gpus=1 if settings.use_gpu else None,
    )
    rows: list[dict[str, Any]] = []
    with cluster.faults_named(), Progress("predict", len(todo), "pictures") as progress:
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows.extend(batch.to_pylist())
            progress.advance(batch.num_rows, **Counter(batch["verdict"].to_pylist()))
    assert len(rows) == len(todo), f"{len(todo)} pictures went in and {len(rows)} rows came out"
    return rows


_open: dict[str, Predictor] = {}  # one a worker process, which Ray uses for many batches


def _predict_batch(batch: pa.Table, run_uri: str, out: str, model_id: str, settings: PredictSettings) -> pa.Table:
    """Predicts and writes one batch, and keeps its rows in a part of their own, so that an interrupted run can go on; on a worker."""
    cv2.setNumThreads(1)  # Ray runs as many tasks as there are cores
    if model_id not in _open:
        _open.clear()
        opened = export.open_onnx if export.is_onnx(run_uri) else Predictor.open
        _open[model_id] = opened(run_uri, "cuda" if settings.use_gpu else "cpu")
    items = batch.to_pylist()
    rows = crop_batch([(item["uri"], item["relative"]) for item in items], _open[model_id], out, settings)
    for row, item in zip(rows, items, strict=True):
        row["stamp"] = f"{model_id}/{item['stamp']}"
    name = fingerprint([row["image_uri"] + row["stamp"] for row in rows])
    storage.write_whole(storage.join(out, output.PARTS, f"part-{name}.parquet"), parquet_bytes(rows, PREDICTIONS))
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def crop_batch(items: Sequence[tuple[str, str]], predictor: Predictor, out: str, settings: PredictSettings) -> list[dict[str, Any]]:
    """Crops pictures, each given as URI and relative path: one row of the predictions table each, in the same order."""
    rows: dict[int, dict[str, Any]] = {}
    readable, wanted = [], _wanted(settings)
    for i, (uri, _) in enumerate(items):
        try:
            data, path = cropping.read(uri)
            readable.append((i, data, read_small(data, uri, settings.max_pixels, predictor.info.seen_px, path)))
        except UnreadableImage as error:
            rows[i] = _failed(uri, str(error))
        except OSError as error:
            rows[i] = _failed(uri, f"{uri}: cannot be read ({error}).")
    if readable:
        predictions = predictor.predict([small.pixels for _, _, small in readable])
        limits, confidence = predictor.intervals(predictions), predictor.confidence(predictions)
        judge = Judge.of(predictor.info, settings)
        cut = judge.boxes(predictions)
        for n, (i, data, small) in enumerate(readable):
            box_px, seen_px = small.to_original(cut[n]), small.to_original(predictions.boxes_norm[n])
            limits_px = np.stack([small.to_original(limits[n, :, end]) for end in (0, 1)], axis=1)
            row = _row(items[i][0], small, box_px, seen_px, limits_px, float(confidence[n]), judge.keeps_whole)
            row["verdict"], row["reason"] = judge.verdict(predictions.spread[n], float(predictions.unlike[n]), float(confidence[n]))
            if wanted is not None:
                promised = cropping.box_of(row)
                cropping.shape(row, limits_px, wanted)
                if judge.promise is not None and min(constraints.outward(promised, cropping.box_of(row))) < 0:
                    broken = "what --max-risk promises would not hold: a constraint moved an edge inward"
                    row.update(verdict=REVIEW, reason="; ".join(text for text in (row["reason"], broken) if text))
            if row["verdict"] == ACCEPT or settings.all:
                cropping.write_crop(row, data, storage.local_path(items[i][1]), out, settings)
            rows[i] = row
    return [rows[i] for i in range(len(items))]


def _row(
    uri: str,
    small: SmallPicture,
    box_px: NDArray[np.float64],
    seen_px: NDArray[np.float64],
    limits_px: NDArray[np.float64],
    confidence: float,
    outward: bool,
) -> dict[str, Any]:
    """A row of predictions for a box (4,) to cut where the model saw ``seen_px`` (4,); to whole pixels outward, or the nearest."""
    box = Box(*box_px)
    if outward:
        box = Box(*np.floor(box_px[:2] + _NO_PX), *np.ceil(box_px[2:] - _NO_PX))
    moved_px = OUTWARD * (box_px - seen_px)
    return {
        "image_uri": uri,
        "width": small.size_wh[0],
        "height": small.size_wh[1],
        "orientation": small.orientation,
        **dict(zip(("x1", "y1", "x2", "y2"), map(float, box.rounded(small.size_wh)), strict=True)),
        "angle_deg": 0.0,
        "confidence": None if math.isnan(confidence) else confidence,
        **{f"{edge}_{end}": float(limits_px[e, n]) for e, edge in enumerate(EDGES) for n, end in enumerate(("lo", "hi"))},
        **dict(zip(MOVED, map(float, moved_px), strict=True)),
        "adjusted": f"the first of {small.pages} pages" if small.pages > 1 else None,
        "crop_uri": None,
        "reviewed_by": None,
    }


def _failed(uri: str, reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(PREDICTIONS.names), "image_uri": uri, "verdict": FAILED, "reason": reason}
