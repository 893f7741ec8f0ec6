"""``cropreg train``: the training loop under Ray Train, on one CPU, one GPU or many, into one run folder.

The run folder is the only memory: the workers keep their checkpoints and figures there, so that a worker that was lost, a driver that
was killed and ``--resume`` all go on in the same way.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Literal, cast

import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, Subset

import cropreg
from cropreg import calibration, checkpoint, report, storage
from cropreg.checkpoint import CheckpointInfo
from cropreg.dataset import MEAN, STD, CropDataset
from cropreg.errors import ClusterError, CropregError, InputError, OutputError, UsageError
from cropreg.logs import EVERY_S, Progress
from cropreg.metrics import fit_baselines
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.pipelines import cluster
from cropreg.prediction import Predictor
from cropreg.schema import FOUND, SPLITS, BoxDataset, csv_bytes
from cropreg.settings import TrainSettings
from cropreg.training import Batch, EpochResult, Learner, fit

log = logging.getLogger(__name__)

_COLLECTIVE_TIMEOUT_S = 300  # workers that wait longer than this for each other have lost one
_POLL_S = 1.0
_PROGRESS = "progress.json"  # where the first worker leaves word for the driver, while it runs
_FAILED = "failed.json"  # where a worker leaves word of an error that would come again
_PIECES = (  # what a run leaves in its folder, evaluated or not; run.json is written anew
    *("checkpoints", "ray", "metrics.csv", "curves.png", "finished.json", _PROGRESS, _FAILED),
    *("evaluation.json", "report.html", "best.jpg", "worst.jpg"),
)
_State = Literal["new", "begun", "finished"]


def run(boxes: str, *, out: str, settings: TrainSettings, address: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Trains on the box dataset at ``boxes`` into the run folder ``out`` and returns the summary.

    Raises:
        InputError: no dataset, or too few rows. OutputError: a run is there already. UsageError: settings that cannot hold together.
        ClusterError: Ray failed or has too few CPUs or GPUs. ModelError: training diverged, or the weights are no EfficientNet-B0.
    """
    dataset, out = BoxDataset.open(boxes), storage.absolute(out)
    counts = _count_rows(dataset, settings.num_workers)
    if settings.batch_size % max(settings.num_workers, 1):
        raise UsageError(f"--batch-size {settings.batch_size} must be a multiple of --num-workers {settings.num_workers}.")
    if settings.batch_size // max(settings.num_workers, 1) < 2:
        raise UsageError(
            f"--batch-size {settings.batch_size}: every one of {settings.num_workers} workers needs at least 2 pictures a step."
        )
    use_gpu = torch.cuda.is_available() if settings.use_gpu is None else settings.use_gpu
    if settings.num_workers == 0 and use_gpu and not torch.cuda.is_available():
        raise UsageError(
            "--use-gpu: PyTorch finds no GPU on this machine. Leave the flag out, or see python -m torch.utils.collect_env."
        )
    summary: dict[str, Any] = {"verb": "train", "out": out, "rows": counts}
    state = _state_of(out, dataset, settings)
    if dry_run:
        steps = math.ceil(counts["train"] / settings.batch_size)
        return {**summary, "code": 0, "dry_run": True, "steps_per_epoch": steps, "max_epochs": settings.max_epochs}
    if state == "finished":
        log.info("run=%s finished before; nothing to do", out)
        return {**summary, **_summary_of(out, settings)}
    _take_folder(state, out, dataset, settings)
    if settings.image_side > _seen_px(dataset, settings):
        log.warning(
            "image_side=%d is more than the %d px of the proxies: match with a larger --proxy-long-px, or use --from originals",
            settings.image_side, _seen_px(dataset, settings),
        )  # fmt: skip
    steps = settings.max_epochs * math.ceil(counts["train"] / settings.batch_size)
    with Progress("train", steps, "steps") as progress:
        if settings.num_workers == 0:
            _learn(dataset, out, settings, torch.device("cuda" if use_gpu else "cpu"), progress)
        else:
            _fit_on_cluster(dataset, out, settings, address, progress)
    rows = read_metrics(out)
    storage.write_whole(storage.join(out, "curves.png"), report.curves_png(rows))
    result = _summary_of(out, settings)
    storage.write_whole(storage.join(out, "finished.json"), json.dumps(result, indent=1).encode())
    return {**summary, **result}


def read_metrics(run: str) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``, one a finished epoch; none when there is no such file yet."""
    uri = storage.join(run, "metrics.csv")
    if not storage.exists(uri):
        return []
    text = storage.read_bytes(uri).decode()
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _count_rows(dataset: BoxDataset, num_workers: int) -> dict[str, int]:
    table = dataset.pairs(["verdict", "split"])
    found = Counter(table.filter(pc.equal(table["verdict"], FOUND))["split"].to_pylist())
    counts = {split: found[split] for split in SPLITS}
    for split, needed in (("train", 2 * max(num_workers, 1)), ("val", 2)):  # BatchNorm needs two pictures in every worker
        if counts[split] < needed:
            raise InputError(
                f"{dataset.uri}: {counts[split]} found pairs in the split {split!r}, training needs {needed} and should have hundreds. "
                f"Match more pairs, or give that split a larger share: cropreg match ... --split 60/20/10/10."
            )
    return counts


def _state_of(out: str, dataset: BoxDataset, settings: TrainSettings) -> _State:
    """Whether ``out`` is to hold a new run, or holds one that may go on or is finished.

    Raises:
        OutputError: there is a run and neither ``--resume`` nor ``--overwrite``, or the run there is of other data or settings.
    """
    name = storage.join(out, "run.json")
    if not storage.exists(name):
        if storage.exists(out) and any(entry.relative != "result.json" for entry in storage.list_files(out)):
            raise OutputError(f"{out}: this folder holds other things. Give a new or empty one with --out.")
        return "new"
    if settings.overwrite:
        return "new"
    if not settings.resume:
        raise OutputError(
            f"{out}: a run is here already. Use --resume to go on with it, --overwrite to replace it, or another --out."
        )
    theirs, ours = json.loads(storage.read_bytes(name)), _identity_of(dataset, settings)
    changed = [key for key, value in ours["settings"].items() if theirs["settings"].get(key) != value]
    may_change = {"max_epochs", "patience", "num_workers", "use_gpu", "cpus_per_worker", "loader_workers"}
    if theirs["dataset"] != ours["dataset"] or not set(changed) <= may_change:
        what = "another dataset" if theirs["dataset"] != ours["dataset"] else f"other settings ({', '.join(changed)})"
        raise OutputError(f"{out}: the run here was started with {what}, so it cannot go on. Use the same, or another --out.")
    return "finished" if storage.exists(storage.join(out, "finished.json")) and not changed else "begun"


def _identity_of(dataset: BoxDataset, settings: TrainSettings) -> dict[str, Any]:
    """What a run goes on with, as ``run.json`` keeps it."""
    return {"settings": settings.model_dump(exclude={"resume", "overwrite", "max_failures"}), "dataset": dataset.fingerprint}


def _take_folder(state: _State, out: str, dataset: BoxDataset, settings: TrainSettings) -> None:
    """Makes the run folder ours: empty of an earlier run if this one is new, with the settings that hold from now on."""
    name = storage.join(out, "run.json")
    if state == "new":
        for piece in _PIECES:
            storage.remove(storage.join(out, piece))
        versions = {"cropreg": cropreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        facts = {"boxes": dataset.uri, "versions": versions, "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
    else:
        storage.remove(storage.join(out, "finished.json"))
        facts = json.loads(storage.read_bytes(name))
    storage.make_folder(out)
    storage.write_whole(name, json.dumps({**facts, **_identity_of(dataset, settings)}, indent=1).encode())


def _summary_of(out: str, settings: TrainSettings) -> dict[str, Any]:
    """What a finished run came to, and why it ended when it did."""
    rows = read_metrics(out)
    best = min(rows, key=lambda row: row["val_loss"])
    early = len(rows) < settings.max_epochs
    why = f"no better validation loss for {settings.patience} epochs (--patience)" if early else "all epochs done (--max-epochs)"
    return {"code": 0, "epochs": len(rows), "best_epoch": int(best["epoch"]), "val_iou": best["val_iou"], "ended": why}


def _fit_on_cluster(dataset: BoxDataset, out: str, settings: TrainSettings, address: str | None, progress: Progress) -> None:
    """Runs the loop in ``num_workers`` processes of Ray Train and tells how far it is."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster.connect(address)
    gpus, cpus = cluster.total("GPU"), cluster.total("CPU")
    use_gpu = gpus >= settings.num_workers if settings.use_gpu is None else settings.use_gpu
    cpus_each = settings.cpus_per_worker or max(1.0, cpus // settings.num_workers if not use_gpu else 1.0)
    if (use_gpu and gpus < settings.num_workers) or cpus < cpus_each * settings.num_workers:
        if not cluster.may_grow(address):
            raise ClusterError(
                f"{settings.num_workers} workers of {cpus_each:g} CPUs{' and a GPU' if use_gpu else ''} each do not fit: this machine has "
                f"{cpus:g} CPUs and {gpus:g} GPUs. Use fewer --num-workers, or a smaller --cpus-per-worker."
            )
        log.warning(
            "wanted workers=%d gpus=%d cpus_each=%g, the cluster has gpus=%g cpus=%g now: waiting for it to grow",
            settings.num_workers, settings.num_workers * use_gpu, cpus_each, gpus, cpus,
        )  # fmt: skip
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"dataset": dataset, "out": out, "settings": settings.model_dump()},
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=settings.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_each}),
        run_config=RunConfig(
            name="ray",
            storage_path=out if storage.is_remote(out) else storage.local_path(out),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=2),
        ),
    )
    storage.remove(storage.join(out, _FAILED))
    outcome: dict[str, Any] = {}

    def fit_trainer() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # raised again where the user's terminal is
            outcome["error"] = error

    # Beside, so that this thread can tell how far the run is and be interrupted.
    thread = threading.Thread(target=fit_trainer, daemon=True)
    thread.start()
    teller = _Teller(out, settings, progress)
    while thread.is_alive():
        thread.join(_POLL_S)
        teller.tell()
    teller.tell()
    storage.remove(storage.join(out, "ray"))  # Ray's own notes on the run; its checkpoints are not there
    storage.remove(storage.join(out, _PROGRESS))
    if failed := _left_word(out):
        storage.remove(storage.join(out, _FAILED))
        raise failed
    if "error" in outcome:
        raise ClusterError(
            f"Ray Train: {outcome['error']}. Finished epochs are kept: run the same command with --resume."
        ) from outcome["error"]


class _Teller:
    """Follows a run folder and tells each finished epoch and how far the current one is."""

    def __init__(self, out: str, settings: TrainSettings, progress: Progress) -> None:
        self._out, self._settings, self._progress, self._told = out, settings, progress, len(read_metrics(out))

    def tell(self) -> None:
        rows = read_metrics(self._out)
        for row in rows[self._told :]:
            self._progress.note(epoch_line(row, self._settings.max_epochs))
        self._told = len(rows)
        name = storage.join(self._out, _PROGRESS)
        if storage.exists(name):
            at = json.loads(storage.read_bytes(name))
            self._progress.reach(at["epoch"] * at["steps"] + at["step"])


def epoch_line(row: Mapping[str, Any], max_epochs: int) -> str:
    """One line about a finished epoch."""
    return (
        f"train epoch {row['epoch'] + 1:.0f}/{max_epochs} loss {row['train_loss']:.4f} val {row['val_loss']:.4f} "
        f"iou {row['val_iou']:.3f} bde {row['val_bde']:.4f} lr {row['learning_rate']:.1e} {row['images_per_s']:.1f} images/s"
        + (" best" if row["is_best"] else "")
    )


def _worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's processes does.

    A named error would come again.  It is written down before it is raised: raised, it ends the other processes, which would wait for
    this one; written down, it keeps Ray from training again what will fail again.
    """
    from ray.train.torch import get_device

    if _left_word(config["out"]):
        return
    try:
        _learn(config["dataset"], config["out"], TrainSettings(**config["settings"]), get_device())
    except CropregError as error:
        word = json.dumps({"code": error.exit_code, "message": str(error)})
        with contextlib.suppress(OutputError):  # a full disk may be the error itself
            storage.create_exclusive(storage.join(config["out"], _FAILED), word.encode())
        raise


def _left_word(out: str) -> CropregError | None:
    """The error that a worker has written down."""
    name = storage.join(out, _FAILED)
    if not storage.exists(name):
        return None
    word = json.loads(storage.read_bytes(name))
    kind = next(kind for kind in CropregError.__subclasses__() if kind.exit_code == word["code"])
    return kind(word["message"])


def _learn(dataset: BoxDataset, out: str, settings: TrainSettings, device: torch.device, progress: Progress | None = None) -> None:
    """The whole of learning in one process of one or several.

    ``progress`` is told directly when this is the user's own process; others leave word in the run folder.
    """
    torch.manual_seed(settings.seed)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = _Loaders(dataset, settings, device, rank, world)
    architecture = Architecture(head=settings.head, image_side=settings.image_side, dropout=settings.dropout)
    baselines = fit_baselines(batches.train_data.labels.boxes_norm)
    core = CropRegressor(architecture, baselines["median_box"])
    last = storage.join(out, "checkpoints/last")
    begun = checkpoint.is_there(last)
    if not begun:
        load_backbone(core, settings.weights)
    core = core.to(device).to(memory_format=torch.channels_last)
    model: torch.nn.Module = core
    if world > 1:
        from ray.train.torch import prepare_model

        model = prepare_model(core)
        core = cast(CropRegressor, model.module)
    learner = Learner(core, model, settings, _precision(settings, device))
    if begun:
        learner.restore(checkpoint.load_state(last, checkpoint.load_info(last)))
    info = CheckpointInfo(
        architecture=architecture,
        seen_px=_seen_px(dataset, settings),
        mean=MEAN,
        std=STD,
        prior_margins=baselines["median_box"],
        baselines=baselines,
        epoch=-1,
        metrics={},
    )
    recorder = _Recorder(out, settings, learner, info, progress) if rank == 0 else None
    fit(learner, batches, settings, recorder.on_epoch if recorder else _silent, recorder.on_step if recorder else _silent)
    if rank == 0:
        _calibrate(dataset, out, settings, device)
    if dist.is_initialized():
        dist.barrier()


def _seen_px(dataset: BoxDataset, settings: TrainSettings) -> int:
    """The long side of the pictures that training reads; of originals about as much as the model can tell from more."""
    proxy_px = int(dataset.manifest["config"].get("proxy_long_px", 512))
    return proxy_px if settings.from_ == "proxies" else max(512, 2 * settings.image_side)


def _silent(*_: Any) -> None:
    """What processes other than the first do after a step or an epoch."""


def _precision(settings: TrainSettings, device: torch.device) -> torch.dtype | None:
    """The half precision to train in: on a GPU bf16 where it has it, else fp16; on a CPU none unless asked (it is slower there)."""
    if settings.amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[settings.amp]


class _Loaders:
    """This process's data.  Order depends on seed and epoch alone; the global batches are the same for any number of processes."""

    def __init__(self, dataset: BoxDataset, settings: TrainSettings, device: torch.device, rank: int, world: int) -> None:
        self.train_data = CropDataset(
            dataset, "train", settings.image_side, augment=True, flip=settings.flip, reframe=settings.reframe, color=settings.color,
            read_from=settings.from_, seed=settings.seed,
        )  # fmt: skip
        val_data = CropDataset(dataset, "val", settings.image_side, read_from=settings.from_)
        workers = settings.loader_workers
        if workers is None:  # on a CPU the model takes all cores, and loading beside it gains nothing
            workers = min(8, max(1, (os.cpu_count() or 2) // max(world, 1) - 1)) if device.type == "cuda" else 0
        shared: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda", "persistent_workers": workers > 0}
        each = settings.batch_size // world
        self._sampler: DistributedSampler[Any] = DistributedSampler(self.train_data, world, rank, shuffle=True, seed=settings.seed)
        # A last batch of one picture has no variance for BatchNorm to divide by.
        drop_last = len(self._sampler) >= each and len(self._sampler) % each == 1
        self._train = DataLoader(self.train_data, each, sampler=self._sampler, drop_last=drop_last, **shared)
        self._val = DataLoader(Subset(val_data, range(rank, len(val_data), world)), 2 * each, **shared)

    def train(self, epoch: int) -> Iterable[Batch]:
        self._sampler.set_epoch(epoch)
        self.train_data.set_epoch(epoch)
        return self._train

    def val(self) -> Iterable[Batch]:
        return self._val

    def names(self, rows: torch.Tensor) -> list[str]:
        return [str(self.train_data.labels.pair_ids[int(row)]) for row in rows]


class _Recorder:
    """What the first process keeps of every epoch: figures, the best checkpoint and the last."""

    def __init__(
        self, out: str, settings: TrainSettings, learner: Learner, info: CheckpointInfo, progress: Progress | None
    ) -> None:
        self._out, self._settings, self._learner, self._info, self._progress = out, settings, learner, info, progress
        # Epochs after the last checkpoint were lost with their worker and will come again.
        self._rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(out) if row["epoch"] < learner.progression.epoch]
        self._told_s = time.monotonic()

    def on_epoch(self, result: EpochResult) -> None:
        row = asdict(result)
        self._rows.append(row)
        info = self._info.model_copy(
            update={
                "epoch": result.epoch,
                "metrics": {"val_loss": result.val_loss, "val_iou": result.val_iou, "val_bde": result.val_bde},
            }
        )
        folder = storage.join(self._out, "checkpoints")
        if result.is_best:
            checkpoint.save(storage.join(folder, "best"), self._learner.judged, info)
        whole = {field.name for field in fields(EpochResult) if field.type in ("int", "bool")}
        rows = ({key: int(v) if key in whole else float(f"{v:.6g}") for key, v in item.items()} for item in self._rows)
        storage.write_whole(storage.join(self._out, "metrics.csv"), csv_bytes(rows, list(row)))
        # After the figures: killed in between, the epoch comes again, and its row with it.
        checkpoint.save(storage.join(folder, "last"), self._learner.judged, info, self._learner.state())
        if self._progress is not None:
            self._progress.note(epoch_line(row, self._settings.max_epochs))

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        if self._progress is not None:
            self._progress.reach(epoch * steps + step)
        elif time.monotonic() - self._told_s >= (EVERY_S if storage.is_remote(self._out) else _POLL_S):
            self._told_s = time.monotonic()
            at = json.dumps({"epoch": epoch, "step": step, "steps": steps})
            storage.write_whole(storage.join(self._out, _PROGRESS), at.encode())


def _calibrate(dataset: BoxDataset, out: str, settings: TrainSettings, device: torch.device) -> None:
    """Learns from the ``calib`` rows how sure the best model may be, and keeps it in its checkpoint."""
    best = storage.join(out, "checkpoints/best")
    model, info = checkpoint.load(best)
    data = CropDataset(dataset, "calib", settings.image_side, read_from=settings.from_)
    pictures = (data.picture(i) for i in range(len(data)))
    predictions = Predictor(model, info, device).predict_all(pictures, settings.batch_size)
    learned = calibration.fit(predictions.boxes_norm, predictions.spread, data.labels.boxes_norm)
    checkpoint.save(best, model.cpu(), info.model_copy(update={"calibration": learned}))
