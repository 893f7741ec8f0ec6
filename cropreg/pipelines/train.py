"""``cropreg train``: the training loop under Ray Train, on one CPU, one GPU or many, into one run folder (`cropreg.runs`)."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.compute as pc
import torch

from cropreg import champion, curve, learning, report, runs, storage, tracking
from cropreg.errors import ClusterError, CropregError, InputError, ModelError, UsageError
from cropreg.loading import naming_lost_processes
from cropreg.logs import Progress
from cropreg.pipelines import cluster
from cropreg.schema import FOUND, SPLITS, BoxDataset
from cropreg.settings import TrainSettings, read_resources

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
    if settings.weights not in ("none", "imagenet"):  # workers have another working directory
        settings = settings.model_copy(update={"weights": storage.absolute(settings.weights)})
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
    if settings.image_side > learning.seen_px(dataset, settings):
        log.warning(
            "image_side=%d is more than the %d px of the proxies: match with a larger --proxy-long-px, or use --from originals",
            settings.image_side, learning.seen_px(dataset, settings),
        )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() and use_gpu else "cpu"

    def learn(place: str, share: float = 1.0) -> None:
        steps = settings.max_epochs * math.ceil(share * num_train / settings.batch_size)
        with Progress("train" if share == 1 else f"train on {share:.3g} of the pairs", steps, "steps") as progress:
            if settings.num_workers == 0:
                with naming_lost_processes():  # on the cluster Ray Train starts a worker again, and a named error would stop that
                    learning.learn(
                        dataset, place, settings, torch.device("cuda" if use_gpu else "cpu"), progress, share, check_ours
                    )
            else:
                _fit_on_cluster(dataset, place, settings, address, progress, share, check_ours)

    learn(out)
    if settings.learning_curve:
        for share in curve.SHARES:
            storage.make_folder(curve.place_of(out, share))
            try:
                learn(curve.place_of(out, share), share)
            except ModelError as error:
                raise ModelError(
                    f"{str(error).split('. ')[0]}. That was the training on {share:g} of the pairs for --learning-curve; the model "
                    "itself is trained: --resume without that flag finishes with it."
                ) from error
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
        yield settings.weights
    if settings.from_ == "originals":
        table = dataset.pairs(["verdict", "original_uri"])
        yield from table.filter(pc.equal(table["verdict"], FOUND))["original_uri"].to_pylist()


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
        learning.learn(config["dataset"], config["out"], TrainSettings(**config["settings"]), get_device(), None, config["share"])
    except CropregError as error:
        runs.leave_word(config["out"], error)
        raise
