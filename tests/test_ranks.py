"""Several processes learn what one would: the same steps, the same decisions, every row once."""

from __future__ import annotations

import socket
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from cropreg import checkpoint, learning, runs
from cropreg.errors import ModelError
from cropreg.learning import synchronised
from cropreg.loading import Loaders, Steps
from cropreg.losses import untrimmed_crop_loss
from cropreg.model import Architecture, CropRegressor
from cropreg.refiner import untrimmed_loss
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings
from cropreg.strips import ACROSS_PX, ALONG_PX, extents_of
from cropreg.training import EpochResult, Learner, fit, validate

SETTINGS = TrainSettings(
    head="spatial",  # for that is what the stand-in says: a number an edge
    image_side=64, max_epochs=3, batch_size=10, num_workers="1:3", learning_rate=0.01, averaging=0.5, lr_patience=0, lr_factor=0.5,
    refine=False, dropout=0.0,
)  # fmt: skip


class Bands(nn.Module):
    """Four margins from the mean colours of sixteen cells; without BatchNorm and dropout, which are each process's own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(48, 16), nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        margins: torch.Tensor = self.last(torch.tanh(self.hidden(cells)))
        return margins


def learn(
    boxes: str, settings: TrainSettings, state: dict[str, Any] | None, rank: int, world: int
) -> tuple[list[EpochResult], dict[str, torch.Tensor], float, dict[str, Any]]:
    """Trains in this process, one of ``world``, from the start or from a state.

    Returns the epochs, the weights, the validation loss of untouched weights, and the state to go on from.
    """
    torch.manual_seed(0)
    core: Any = Bands()
    batches = Loaders(BoxDataset.open(boxes), settings, torch.device("cpu"), rank, world)
    before = validate(core, batches, settings)
    model = nn.parallel.DistributedDataParallel(core) if world > 1 else core
    learner = Learner(core, model, settings, None)
    if state is not None:
        learner.restore(deepcopy(state))  # the optimiser keeps what it is given, and here that is memory all processes share
    results: list[EpochResult] = []
    fit(learner, batches, settings, results.append)
    return results, learner.judged.state_dict(), before.loss, learner.state()


def _process(rank: int, world: int, port: int, work: Any, arguments: tuple[Any, ...], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(work(*arguments, rank, world), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def over(world: int, folder: Path, work: Any, *arguments: Any) -> list[Any]:
    """What ``work`` returns in each of ``world`` processes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    mp.spawn(_process, (world, port, work, arguments, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.mark.long
def test_processes_learn_what_one_would_at_the_same_batch(made_boxes: Path, tmp_path: Path) -> None:
    expected, weights, before, _ = learn(str(made_boxes), SETTINGS, None, 0, 1)
    every = over(3, tmp_path, learn, str(made_boxes), SETTINGS, None)
    for results, theirs, untouched, _ in every:
        assert untouched == pytest.approx(before, rel=1e-6)
        for ours, one in zip(results, expected, strict=True):
            assert ours.train_loss == pytest.approx(one.train_loss, rel=1e-4)
            assert ours.val_loss == pytest.approx(one.val_loss, rel=1e-4)
            assert (ours.learning_rate, ours.is_best) == (one.learning_rate, one.is_best)
        for name, value in weights.items():
            assert torch.allclose(theirs[name], value, atol=1e-4), name
    assert all([r.val_loss for r in results] == [r.val_loss for r in every[0][0]] for results, *_ in every), "to the last bit"


@pytest.mark.long
def test_run_whose_number_of_processes_changes_learns_what_one_would(made_boxes: Path, tmp_path: Path) -> None:
    expected, weights, *_ = learn(str(made_boxes), SETTINGS, None, 0, 1)
    results: list[EpochResult] = []
    state: dict[str, Any] | None = None
    for epochs, world in ((1, 1), (2, 2), (3, 1)):
        task = str(made_boxes), SETTINGS.model_copy(update={"max_epochs": epochs}), state
        part, learned, _, state = over(world, tmp_path, learn, *task)[0] if world > 1 else learn(*task, 0, 1)
        results += part
    assert [result.epoch for result in results] == [0, 1, 2]
    for ours, one in zip(results, expected, strict=True):
        assert ours.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert ours.val_loss == pytest.approx(one.val_loss, rel=1e-4)
        assert (ours.learning_rate, ours.is_best) == (one.learning_rate, one.is_best)
    assert all(torch.allclose(learned[name], value, atol=1e-4) for name, value in weights.items())


def diverge(boxes: str, rank: int, world: int) -> str:
    """Trains with one picture that has no numbers, seen by one process only; returns what this process says."""
    batches = Loaders(BoxDataset.open(boxes), SETTINGS, torch.device("cpu"), rank, world)
    read = batches.train_data.__class__.__getitem__

    def spoiled(self: Any, index: int) -> Any:
        image, *rest = read(self, index)
        return (image * np.nan if index == 5 else image), *rest

    batches.train_data.__class__.__getitem__ = spoiled  # type: ignore[method-assign]
    core: Any = Bands()
    with pytest.raises(ModelError) as caught:
        fit(Learner(core, nn.parallel.DistributedDataParallel(core), SETTINGS, None), batches, SETTINGS, lambda _: None)
    assert str(batches.train_data.labels.pair_ids[5]) in str(caught.value)
    return str(caught.value).split("pairs ")[1]


@pytest.mark.long
def test_every_process_names_the_pair_that_spoiled_the_step(made_boxes: Path, tmp_path: Path) -> None:
    said = over(2, tmp_path, diverge, str(made_boxes))
    assert said[0] == said[1] and said[0].count(",") <= 1, "that pair alone"


def whole_run(boxes: str, out: str, rank: int, world: int) -> int:
    """All that a training worker does, but for Ray."""
    settings = SETTINGS.model_copy(update={"max_epochs": 2, "weights": "none", "refine": True, "num_workers": 2})
    learning.learn(BoxDataset.open(boxes), out, settings, torch.device("cpu"))
    return rank


@pytest.mark.long
def test_first_process_alone_records_the_run_and_it_can_be_used(made_boxes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert over(2, tmp_path, whole_run, str(made_boxes), str(run)) == [0, 1]
    assert [row["epoch"] for row in runs.read_metrics(str(run))] == [0, 1]
    assert len(list((run / "tensorboard").iterdir())) == 1
    _, info = checkpoint.load(str(run / "checkpoints/best"))
    assert info.calibration is not None and info.epoch in (0, 1)


def trimming_slopes(rank: int, world: int) -> list[float]:
    """How a process would change the way it trims after a step over its own strips: what it has of all processes' gradients."""
    torch.manual_seed(0)
    core = CropRegressor(Architecture(image_side=64, refine=True, trims_to=4 / 3), (0.1, 0.1, 0.1, 0.1))
    torch.manual_seed(rank)
    extents = torch.from_numpy(np.stack([extents_of(np.array([0.2, 0.2, 0.8, 0.7]), (640, 480))] * 2))
    model = nn.parallel.DistributedDataParallel(core)
    said, logits = model(torch.randn(2, 3, 64, 64), torch.randn(2, 4, 3, ALONG_PX, ACROSS_PX), extents)
    assert core.refiner is not None and core.refiner.trimming is not None
    losses, seen = untrimmed_loss(core.refiner, logits, 0.5 * torch.randn(2, 4), extents)
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.7]] * 2)
    first = untrimmed_crop_loss(said, boxes, "giou", 1.0, 5.0, "smooth-l1", seen, core.refiner.trimming)
    (losses + first).mean().backward()
    return [float(slope) for value in core.refiner.trimming.parameters() for slope in value.grad.flatten()]


@pytest.mark.long
def test_processes_learn_together_how_to_trim(tmp_path: Path) -> None:
    slopes = over(2, tmp_path, trimming_slopes)
    assert slopes[0] == slopes[1] and all(slopes[0]), "though it is used outside of what the wrapper sees"


@pytest.mark.parametrize("rows", [7, 10, 11, 41, 412])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_steps_share_every_row_once_and_do_not_depend_on_the_processes(rows: int, world: int) -> None:
    shares = [Steps(rows, 10, 6, rank, world, seed=1) for rank in range(world)]
    for share in shares:
        share.set_epoch(4)
    steps = [list(share) for share in shares]
    whole = list(Steps(rows, 10, 6, 0, 1, seed=1)) if world == 1 else None
    assert len({len(s) for s in steps}) == 1 == len({len(s) for s in shares})
    assert Counter(row for part in steps for step in part for row in step) == Counter(range(rows))
    one = Steps(rows, 10, 6, 0, 1, seed=1)
    one.set_epoch(4)
    for number, (together, expected) in enumerate(zip(zip(*steps, strict=True), one, strict=True)):
        assert sorted(row for part in together for row in part) == sorted(expected)
        assert len(expected) == one.rows_of(number) == shares[-1].rows_of(number) and min(len(part) for part in together) >= 2
    assert whole is None or whole != steps[0], "another epoch, another order"


def test_batchnorm_sees_all_processes_on_gpus_and_keeps_the_names_of_its_weights() -> None:
    model = CropRegressor(Architecture(image_side=64), (0.1, 0.1, 0.1, 0.1))
    names = list(model.state_dict())
    assert synchronised(model, torch.device("cpu"), 2) is model and synchronised(model, torch.device("cuda"), 1) is model
    over_gpus = synchronised(model, torch.device("cuda"), 2)
    kinds = Counter(type(module).__name__ for module in over_gpus.modules())
    assert kinds["SyncBatchNorm"] > 40 and not kinds["BatchNorm2d"] + kinds["BatchNorm1d"]
    assert list(over_gpus.state_dict()) == names
