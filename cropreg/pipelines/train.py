"""``cropreg train``: the training loop under Ray Train, on one CPU, one GPU or many, into one run folder (`cropreg.runs`)."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from cropreg import calibration, champion, checkpoint, curve, novelty, promise, proportions, report, runs, storage, tracking
from cropreg.cache import Cache
from cropreg.checkpoint import CheckpointInfo, Novelty, Outcomes
from cropreg.dataset import MEAN, STD, CropDataset
from cropreg.errors import ClusterError, CropregError, InputError, UsageError
from cropreg.evaluation import edges_in_words, evaluate, in_words
from cropreg.loading import Loaders, naming_lost_processes
from cropreg.logs import Progress
from cropreg.metrics import fit_baselines
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.pipelines import cluster
from cropreg.prediction import Predictor
from cropreg.schema import FOUND, SPLITS, BoxDataset
from cropreg.settings import TrainSettings, read_resources
from cropreg.training import EpochResult, Learner, fit

log = logging.getLogger(__name__)

# How long workers wait for each other.  A lost one is noticed by Ray; this is for a node that fills its cache of proxies first.
_COLLECTIVE_TIMEOUT_S = 1800
# How long Ray Train waits for room for its workers, and how often again.  A GPU machine that first has to start takes minutes.  A run
# that takes what there is finds room at once, or waits for a lost machine, of whose loss Ray Train hears up to 20 s late.
_ROOM_S, _ROOM_AGAIN = 600, 2
_ELASTIC_ROOM_S, _ELASTIC_ROOM_AGAIN = 60, 29


def run(boxes: str, *, out: str, settings: TrainSettings, address: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Trains on the box dataset at ``boxes`` into the run folder ``out`` and returns the summary.

    Raises:
        InputError: no dataset, or too few rows. OutputError: a run is there already. UsageError: settings that cannot hold together.
        ClusterError: Ray failed or has too few CPUs or GPUs. ModelError: training diverged, or the weights are no EfficientNet-B0.
    """
    dataset, out = BoxDataset.open(boxes), storage.absolute(out)
    counts = _count_rows(dataset, settings.most_workers)
    champion.check(settings.champion, counts)
    curve.check(settings.learning_curve, dataset, settings.seed, settings.most_workers)
    tracking.check(settings.track)
    if settings.most_workers > 1 and settings.batch_size < 4 * settings.most_workers:  # a short step keeps two for each
        raise UsageError(
            f"--batch-size {settings.batch_size}: {settings.most_workers} workers need at least {4 * settings.most_workers} pictures a "
            "step, 4 each."
        )
    check_edges(settings)
    use_gpu = torch.cuda.is_available() if settings.use_gpu is None else settings.use_gpu
    if settings.num_workers == 0 and use_gpu and not torch.cuda.is_available():
        raise UsageError(
            "--use-gpu: PyTorch finds no GPU on this machine. Leave the flag out, or see python -m torch.utils.collect_env."
        )
    summary: dict[str, Any] = {"verb": "train", "out": out, "rows": counts}
    storage.refuse_if_held(out)
    state = runs.state_of(out, dataset, settings)
    if settings.champion and state == "new" and f"{storage.absolute(settings.champion)}/".startswith(f"{out}/"):
        raise UsageError(f"--champion {settings.champion}: the new run would take its place in {out} unseen. Give another --out.")
    if dry_run:
        steps = math.ceil(counts["train"] / settings.batch_size)
        return {**summary, "code": 0, "dry_run": True, "steps_per_epoch": steps, "max_epochs": settings.max_epochs}
    if state == "finished":
        log.info("run=%s finished before; nothing to do", out)
        return {**summary, **runs.summary_of(out, settings)}
    with storage.held(out, "train") as lease:
        runs.take_folder(state, out, dataset, settings)
        result = _train(dataset, out, settings, address, use_gpu, counts["train"], lease.check)
        storage.write_whole(storage.join(out, "finished.json"), json.dumps(result, indent=1).encode())
    return {**summary, **result}


def check_edges(settings: TrainSettings) -> None:
    """Refuses losses that the head has no numbers for, and numbers that no loss teaches."""
    if settings.edges == "dfl" and settings.head != "distribution":
        raise UsageError(
            f"--edges dfl is a loss of shares of places, and --head {settings.head} gives none. Add --head distribution."
        )
    if settings.edges == "laplace" and settings.head == "distribution":
        raise UsageError(
            "--edges laplace: --head distribution says by itself how unsure it is. Use --edges dfl, or --head spatial."
        )
    if settings.edges != "smooth-l1" and settings.margin_weight == 0:
        raise UsageError(f"--edges {settings.edges} does nothing with --margin-weight 0. Leave one of them out.")


def _train(
    dataset: BoxDataset,
    out: str,
    settings: TrainSettings,
    address: str | None,
    use_gpu: bool,
    num_train: int,
    check_ours: Callable[[], None],
) -> dict[str, Any]:
    """Trains into a folder that is ours, as ``check_ours`` makes sure, here or on the cluster, and returns what it came to."""
    if settings.image_side > _seen_px(dataset, settings):
        log.warning(
            "image_side=%d is more than the %d px of the proxies: match with a larger --proxy-long-px, or use --from originals",
            settings.image_side, _seen_px(dataset, settings),
        )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() and use_gpu else "cpu"

    def learn(place: str, share: float = 1.0) -> None:
        steps = settings.max_epochs * math.ceil(share * num_train / settings.batch_size)
        with Progress("train" if share == 1 else f"train on {share:.3g} of the pairs", steps, "steps") as progress:
            if settings.num_workers == 0:
                with naming_lost_processes():  # on the cluster Ray Train starts a worker again, and a named error would stop that
                    _learn(dataset, place, settings, torch.device("cuda" if use_gpu else "cpu"), progress, share, check_ours)
            else:
                _fit_on_cluster(dataset, place, settings, address, progress, share, check_ours)

    learn(out)
    if settings.learning_curve:
        for share in curve.SHARES:
            storage.make_folder(curve.place_of(out, share))
            learn(curve.place_of(out, share), share)
        curve.draw(dataset, out, settings, device)
    check_ours()
    champion.contest(dataset, out, settings, device)
    rows = runs.read_metrics(out)
    storage.write_whole(storage.join(out, "curves.png"), report.curves_png(rows))
    return runs.summary_of(out, settings)


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


def _fit_on_cluster(
    dataset: BoxDataset,
    out: str,
    settings: TrainSettings,
    address: str | None,
    progress: Progress,
    share: float,
    check_ours: Callable[[], None],
) -> None:
    """Runs the loop in ``num_workers`` processes of Ray Train and tells how far it is."""
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster.connect(address)
    cluster.check_shared(_read_by_workers(dataset, settings), out)
    scaling = _scaling(settings, address)
    elastic = settings.least_workers < settings.most_workers
    gpus_each = scaling.resources_per_worker.get("GPU", 0)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"dataset": dataset, "out": out, "settings": settings.model_dump(), "share": share},
        # NCCL refuses two processes on one GPU, which shares of a GPU may come to.
        torch_config=TorchConfig(backend="gloo" if gpus_each < 1 else "nccl", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray",
            storage_path=out if storage.is_remote(out) else storage.local_path(out),
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=_ELASTIC_ROOM_AGAIN if elastic else _ROOM_AGAIN
            ),
        ),
    )
    storage.remove(storage.join(out, runs.FAILED))
    outcome: dict[str, Any] = {}

    def fit_trainer() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # raised again where the user's terminal is
            outcome["error"] = error

    # Beside, so that this thread can tell how far the run is and be interrupted.
    thread = threading.Thread(target=fit_trainer, daemon=True)
    teller = runs.Follower(out, settings, progress)
    with _waiting_for_room(_ELASTIC_ROOM_S if elastic else _ROOM_S):
        thread.start()
        while thread.is_alive():
            thread.join(runs.POLL_S)
            check_ours()
            teller.tell()
    teller.tell()
    storage.remove(storage.join(out, "ray"))  # Ray's own notes on the run; its checkpoints are not there
    storage.remove(storage.join(out, runs.PROGRESS))
    if failed := runs.left_word(out):
        storage.remove(storage.join(out, runs.FAILED))
        raise failed
    if "error" in outcome:
        raise ClusterError(
            f"Ray Train: {outcome['error']}. Finished epochs are kept: run the same command with --resume."
        ) from outcome["error"]


def _read_by_workers(dataset: BoxDataset, settings: TrainSettings) -> Iterator[str]:
    """The files that every machine must see."""
    yield from (storage.join(dataset.uri, part.file) for part in dataset.parts("pairs"))
    if settings.weights not in ("none", "imagenet"):
        yield storage.absolute(settings.weights)
    if settings.from_ == "originals":
        yield from dataset.pairs(["original_uri"])["original_uri"].to_pylist()


@contextlib.contextmanager
def _waiting_for_room(seconds: float) -> Iterator[None]:
    """How long Ray Train waits for its workers' room, unless the environment says so already: it is told no other way."""
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        del os.environ[name]


def _scaling(settings: TrainSettings, address: str | None) -> Any:
    """How many workers Ray Train is to start, and what each reserves; looks whether there is room for the fewest that will do.

    Raises:
        UsageError: flags that contradict each other. ClusterError: there is no room, and no machine will come.
    """
    from ray.train import ScalingConfig

    least, most = settings.least_workers, settings.most_workers
    each = read_resources(settings.resources)
    use_gpu = settings.use_gpu
    if "GPU" in each and use_gpu is not None and use_gpu != (each["GPU"] > 0):
        raise UsageError(f"--resources {settings.resources} and --{'' if use_gpu else 'no-'}use-gpu contradict each other.")
    if "GPU" not in each:
        each["GPU"] = float(cluster.total("GPU") >= least if use_gpu is None else use_gpu)
    if "CPU" not in each:
        each["CPU"] = 1.0 if each["GPU"] else cluster.share_of_cpus(most)
    short = [
        f"{least * amount:g} {name} (there are {cluster.total(name):g})"
        for name, amount in each.items()
        if cluster.total(name) < least * amount
    ]
    if short:
        if not cluster.may_grow(address):
            raise ClusterError(
                f"{least} workers want {', '.join(short)}: that does not fit here. Use fewer --num-workers, or smaller --resources."
            )
        log.warning("the cluster is too small now, waiting for it to grow: %d workers want %s", least, ", ".join(short))
    return ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=each["GPU"] > 0,
        resources_per_worker={name: amount for name, amount in each.items() if amount > 0},
    )


def _worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's processes does.

    A named error would come again.  It is written down before it is raised: raised, it ends the other processes, which would wait for
    this one; written down, it keeps Ray from training again what will fail again.
    """
    from ray.train.torch import get_device

    if runs.left_word(config["out"]):
        return
    try:
        _learn(config["dataset"], config["out"], TrainSettings(**config["settings"]), get_device(), None, config["share"])
    except CropregError as error:
        runs.leave_word(config["out"], error)
        raise


def _learn(
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
        seen_px=_seen_px(dataset, settings),
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
