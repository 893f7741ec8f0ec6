"""The whole of learning, in one process of one or several: data, model, loop, and what the finished model knows of itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from cropreg import calibration, checkpoint, novelty, promise, proportions, runs, storage, tracking
from cropreg.cache import Cache
from cropreg.checkpoint import CheckpointInfo, Novelty, Outcomes
from cropreg.dataset import MEAN, STD, CropDataset
from cropreg.errors import UsageError
from cropreg.evaluation import edges_in_words, evaluate, in_words
from cropreg.loading import Loaders
from cropreg.logs import Progress
from cropreg.metrics import fit_baselines
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.prediction import Predictor
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings
from cropreg.training import EpochResult, Learner, fit

log = logging.getLogger(__name__)


def learn(
    dataset: BoxDataset,
    out: str,
    settings: TrainSettings,
    device: torch.device,
    progress: Progress | None = None,
    share: float = 1.0,
    check_ours: Callable[[], None] = lambda: None,
) -> None:
    """The whole of learning, on a share of the training groups, in one process of one or several.

    ``progress`` is told directly when this is the user's own process; others leave word in the run folder.  ``check_ours`` raises when
    the folder is no longer this run's.
    """
    torch.manual_seed(settings.seed)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = Loaders(dataset, settings, device, rank, world, share)
    labels = batches.train_data.labels
    proportion = proportions.learn(labels.boxes_norm, labels.sizes_wh)
    architecture = Architecture(
        head=settings.head, image_side=settings.image_side, dropout=settings.dropout, refine=settings.refine,
        scales=settings.edges == "laplace", trims_to=proportion.aspect if proportion and settings.refine else None,
    )  # fmt: skip
    last = storage.join(out, "checkpoints/last")
    begun = checkpoint.is_there(last)
    if begun:  # by a cropreg that trimmed nothing, perhaps
        trims_to = checkpoint.load_info(last).architecture.trims_to
        architecture = architecture.model_copy(update={"trims_to": trims_to})
    batches.train_data.untrimmed = architecture.trims_to is not None
    baselines = fit_baselines(labels.boxes_norm)
    core = CropRegressor(architecture, baselines["median_box"])
    if not begun:
        load_backbone(core, settings.weights)
    core = synchronised(core, device, world).to(device).to(memory_format=torch.channels_last)
    model: torch.nn.Module = core
    if world > 1:
        model = DistributedDataParallel(core, device_ids=[device] if device.type == "cuda" else None)
    if settings.compile:
        _check_compiler(device)
        model = cast(torch.nn.Module, torch.compile(model))
    learner = Learner(core, model, settings, _precision(settings, device))
    if begun:
        learner.restore(checkpoint.load_state(last, checkpoint.load_info(last)))
    info = CheckpointInfo(
        architecture=architecture,
        seen_px=seen_px(dataset, settings),
        mean=MEAN,
        std=STD,
        prior_margins=baselines["median_box"],
        baselines=baselines,
        proportion=proportion,
        epoch=-1,
        metrics={},
    )
    if rank == 0:
        if (held := info.proportion) is not None:
            log.info("aspect=%.4g deviation=%.2g of all crops: boxes are held to it", held.aspect, held.deviation)
        recorder = runs.Recorder(out, settings, learner, info, progress)
        with tracking.opened(out, settings.track, settings.model_dump(), learner.progression.epoch) as told:

            def on_epoch(result: EpochResult) -> None:
                check_ours()
                recorder.on_epoch(result)
                told.write(result.epoch, asdict(result))

            fit(learner, batches, settings, on_epoch, recorder.on_step)
        _calibrate(dataset, out, settings, device)  # which may take long: the other processes do not wait for it
    else:
        fit(learner, batches, settings, _silent, _silent)


def synchronised(model: CropRegressor, device: torch.device, world: int) -> CropRegressor:
    """The model with BatchNorm over the pictures of all processes, where PyTorch can: on GPUs.  On CPUs each process has its own."""
    if world == 1 or device.type != "cuda":
        return model
    return cast(CropRegressor, torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))


def _check_compiler(device: torch.device) -> None:
    """Compiles something small, so that what is missing is told before training starts and by name."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch has a dozen kinds for it
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"--compile: torch.compile does not work here ({reason}). Install a C++ compiler, or leave the flag out."
        ) from error


def seen_px(dataset: BoxDataset, settings: TrainSettings) -> int:
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
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[settings.amp]


def _calibrate(dataset: BoxDataset, out: str, settings: TrainSettings, device: torch.device) -> None:
    """Learns from pictures that trained nothing how sure the best model may be, and keeps it in its checkpoint."""
    best = storage.join(out, "checkpoints/best")
    model, info = checkpoint.load(best)
    cache = Cache(settings.cache_dir, settings.cache_gb)
    predictor = Predictor(model, info, device)
    splits = {
        name: CropDataset(dataset, name, settings.image_side, read_from=settings.from_, cache=cache)
        for name in ("train", "val", "calib")
    }
    known: dict[str, Outcomes] = {}
    answers: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = {}
    for name in ("val", "calib"):
        data = splits[name]
        true, groups = data.labels.boxes_norm, data.labels.groups.to_pylist()
        predictions = predictor.predict_all(map(data.picture, range(len(data))), settings.batch_size)
        answers[name] = predictions.boxes_norm, predictions.spread, true
        known[name] = promise.outcomes(*answers[name], groups)
    learned = calibration.fit(*answers["calib"])
    learned = learned.model_copy(update={**known, "novelty": _kind_learned(predictor, splits, settings)})
    checkpoint.save(best, model.cpu(), info.model_copy(update={"calibration": learned}))
    name, which = (
        ("calib", "pictures kept aside") if len(splits["calib"]) else ("val", "validation pictures, which chose the best epoch,")
    )
    judged = evaluate(*answers[name], info.baselines, None, resamplings=1000, rng=np.random.default_rng(settings.seed))
    words = {"in_words": in_words(judged, which), "edges_in_words": edges_in_words(judged)}
    storage.write_whole(storage.join(out, runs.JUDGED), json.dumps({**judged, **words}, indent=1).encode())


def _kind_learned(predictor: Predictor, splits: Mapping[str, CropDataset], settings: TrainSettings) -> Novelty | None:
    """What kind of pictures these are: from training pictures, and how far others of the kind lie off from those kept aside."""
    data = splits["train"]
    some = np.unique(np.linspace(0, len(data) - 1, min(len(data), novelty.MOST_LEARNED_FROM)).astype(int))
    seen = predictor.kinds((data.picture(int(i)) for i in some), settings.batch_size)
    aside = ((splits[name], i) for name in ("val", "calib") for i in range(min(len(splits[name]), novelty.MOST_LEARNED_FROM)))
    return novelty.fit(seen, predictor.kinds((rows.picture(i) for rows, i in aside), settings.batch_size))
