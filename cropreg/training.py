"""The training loop.  It reads top to bottom and knows nothing of Ray; over several processes it speaks through ``torch.distributed``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import box_iou

from cropreg.edges import read
from cropreg.errors import ModelError
from cropreg.losses import crop_loss, to_boxes, untrimmed_crop_loss
from cropreg.model import CropRegressor
from cropreg.refiner import refine_loss, untrimmed_loss
from cropreg.settings import TrainSettings
from cropreg.strips import REACH

Batch = Sequence[torch.Tensor]
"""Pictures (B, 3, S, S), boxes (B, 4) in shares, row numbers (B,); to train a refiner strips (B, 4, 3, along, across), their extents
(B, 4, EXTENTS) and offsets (B, 4)."""


_REFINER_TIMES = 2.5  # the refiner is small and starts from nothing: it takes larger steps than a backbone that knows much
_MOST_NAMED = 8  # pairs of a step that diverged


class Batches(Protocol):
    """Where batches come from: what this process sees of an epoch of training, and of the validation rows."""

    def train(self, epoch: int) -> Iterable[Batch]:
        """This process's share of an epoch, as many steps as every other process has; has a length."""
        ...

    def rows_of(self, step: int) -> int:
        """Training rows of a step over all processes."""
        ...

    def val(self) -> Iterable[Batch]:
        """This process's share of the validation rows; over all processes each row comes once."""
        ...

    def val_strips(self, rows: torch.Tensor, boxes_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Strips of validation rows about boxes (B, 4), and their extents; only asked of a model with a refiner."""
        ...

    def names(self, rows: torch.Tensor) -> list[str]:
        """The pair ids of training rows."""
        ...


@dataclass(frozen=True)
class Progression:
    """How far training is: all that early stopping knows."""

    epoch: int = 0  # epochs finished
    best_loss: float = float("inf")
    best_epoch: int = -1
    stale: int = 0  # epochs since the best

    def after(self, epoch: int, val_loss: float) -> Progression:
        """The state after an epoch with that validation loss."""
        if val_loss < self.best_loss:
            return Progression(epoch + 1, val_loss, epoch, 0)
        return replace(self, epoch=epoch + 1, stale=self.stale + 1)


@dataclass(frozen=True)
class Validation:
    """Means over every validation row, the same number on every process."""

    loss: float
    iou: float
    bde: float
    rows: int


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to; a row of ``metrics.csv``."""

    epoch: int
    train_loss: float
    val_loss: float
    val_iou: float
    val_bde: float
    learning_rate: float
    grad_norm: float
    skipped_steps: int
    images_per_s: float
    elapsed_s: float
    is_best: bool


class Learner:
    """The model with all that changes while it learns: averaged copy, optimiser, scheduler, scaler and progression.

    Args:
        core: the regressor itself, on its device.
        model: what is trained: ``core``, or ``core`` wrapped for several processes.
        settings: learning rate and the like.
        amp: half precision type, or None.
    """

    def __init__(self, core: CropRegressor, model: torch.nn.Module, settings: TrainSettings, amp: torch.dtype | None) -> None:
        self.core, self.model, self.amp = core, model, amp
        self.device = next(core.parameters()).device
        self.optimizer = torch.optim.AdamW(_groups(core, settings))
        self.scheduler = ReduceLROnPlateau(self.optimizer, factor=settings.lr_factor, patience=settings.lr_patience)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp is torch.float16)
        self.averaged: AveragedModel | None = None
        if settings.averaging:
            self.averaged = AveragedModel(core, use_buffers=True)
            # Of AveragedModel its state's form is used.  Kept, for its own update looks for them at every step, which takes it 3 ms.
            self._parts = [_tensors(model) for model in (self.averaged.module, core)]
        self._decay = settings.averaging
        self.progression = Progression()

    @property
    def judged(self) -> CropRegressor:
        """The weights that are validated and kept: the average, or the model itself."""
        return cast(CropRegressor, self.averaged.module) if self.averaged is not None else self.core

    @torch.no_grad()
    def average(self) -> None:
        """Lets the average follow the weights, closely at first: after n steps its decay is at most (1 + n) / (10 + n).

        Otherwise a short training would end with what it had learned a hundred steps ago.  Source: TensorFlow's
        ExponentialMovingAverage.
        """
        if self.averaged is None:
            return
        done = int(self.averaged.n_averaged)
        share = 1 - min(self._decay, (1 + done) / (10 + done)) if done else 1.0
        (fractions, counters), (current, counted) = self._parts
        torch._foreach_lerp_(fractions, current, share)
        if counters:
            torch._foreach_copy_(counters, counted)
        self.averaged.n_averaged += 1

    def state(self) -> dict[str, Any]:
        """All it takes to go on as if nothing had happened."""
        parts: dict[str, Any] = {"core": self.core, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        if self.averaged is not None:
            parts["averaged"] = self.averaged
        return {name: part.state_dict() for name, part in parts.items()} | {
            "progression": asdict(self.progression),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what :meth:`state` returned."""
        self.core.load_state_dict(state["core"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty of a run that did without, as on a CPU
            self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.progression = Progression(**state["progression"])


def _groups(core: torch.nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """The parameters by how they are stepped: ``times`` the learning rate, and with which decay."""
    grouped: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in core.named_parameters():
        times = _REFINER_TIMES if name.startswith("refiner.") else 1.0
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0  # it would only pull biases and BatchNorm off their meaning
        grouped.setdefault((times, decay), []).append(parameter)
    return [
        {"params": parameters, "times": times, "lr": settings.learning_rate * times, "weight_decay": decay}
        for (times, decay), parameters in grouped.items()
    ]


def _tensors(model: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A model's weights and buffers: those with fractions, and BatchNorm's counters."""
    both = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    return [t for t in both if t.is_floating_point()], [t for t in both if not t.is_floating_point()]


def fit(
    learner: Learner,
    batches: Batches,
    settings: TrainSettings,
    on_epoch: Callable[[EpochResult], None],
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
) -> None:
    """Trains until the validation loss stops falling, or ``max_epochs``.

    Args:
        learner: changed in place; may have been restored in the middle of a run.
        batches: this process's data.
        settings: epochs, patience, clipping, loss weights.
        on_epoch: called on every process after each epoch; saves and reports.
        on_step: called after each step with epoch, step and steps of the epoch.

    Raises:
        ModelError: the loss or a gradient became NaN or Inf; the message names epoch, step and pairs.  The validation loss too.
    """
    while learner.progression.epoch < settings.max_epochs and learner.progression.stale < settings.patience:
        epoch, began_s = learner.progression.epoch, time.monotonic()
        trained = train_one_epoch(learner, batches, epoch, settings, on_step)
        if math.isnan(trained.grad_norm) and learner.scaler.get_scale() < 1:  # too large for fp16, but not by as much as that
            raise _diverged(epoch, "every step was left out, since its gradients were no numbers")
        val = validate(learner.judged, batches, settings)  # summed over all processes: all see the same number
        if not math.isfinite(val.loss):  # weights too large for a picture, though every gradient was a number
            raise _diverged(epoch, f"validation loss {val.loss}")
        learning_rate = learner.optimizer.param_groups[0]["lr"]
        learner.scheduler.step(val.loss)
        learner.progression = learner.progression.after(epoch, val.loss)
        on_epoch(
            EpochResult(
                epoch=epoch,
                train_loss=trained.loss,
                val_loss=val.loss,
                val_iou=val.iou,
                val_bde=val.bde,
                learning_rate=learning_rate,
                grad_norm=trained.grad_norm,
                skipped_steps=trained.skipped_steps,
                images_per_s=trained.images / trained.elapsed_s,
                elapsed_s=time.monotonic() - began_s,
                is_best=learner.progression.best_epoch == epoch,
            )
        )


@dataclass(frozen=True)
class _Trained:
    loss: float
    grad_norm: float
    skipped_steps: int
    images: int
    elapsed_s: float


def train_one_epoch(
    learner: Learner, batches: Batches, epoch: int, settings: TrainSettings, on_step: Callable[[int, int, int], None]
) -> _Trained:
    """One pass over the training rows; the loss and the number of images are of all processes together."""
    model, optimizer, scaler, device = learner.model, learner.optimizer, learner.scaler, learner.device
    loader = batches.train(epoch)
    assert isinstance(loader, Sized)
    steps = len(loader)
    warmup_steps = settings.warmup_epochs * steps
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loss_sum, images_here = torch.zeros((), dtype=torch.float64, device=device), 0
    norms: list[float] = []
    skipped = 0
    began_s = time.monotonic()
    # Dropout draws from torch's own generator.  Every process its own noise, and a resumed epoch the noise it would have had.
    torch.manual_seed(_mixed(settings.seed, epoch, rank))
    model.train()
    for step, (images, boxes_norm, rows, *more) in enumerate(loader):
        done = epoch * steps + step
        if done < warmup_steps:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * group["times"] * min(1.0, (done + 1) / warmup_steps)
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        boxes_norm = boxes_norm.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=learner.amp or torch.bfloat16, enabled=learner.amp is not None):
            looks = [part.to(device, non_blocking=True) for part in more[:2]]
            if settings.compile:  # translated once, for steps of any number of rows: they differ by one
                for part in (images, *looks):
                    torch._dynamo.maybe_mark_dynamic(part, 0)
            said, logits = model(images, *looks) if more else (model(images), None)
        how = settings.overlap, settings.iou_weight, settings.margin_weight
        if logits is None:
            losses = crop_loss(said.float(), boxes_norm, *how, settings.edges)
        else:
            refiner, offsets = learner.core.refiner, more[2].to(device, non_blocking=True)
            assert refiner is not None
            if refiner.trimming is None:
                losses = crop_loss(said.float(), boxes_norm, *how, settings.edges) + refine_loss(refiner, logits.float(), offsets)
            else:
                second, seen = untrimmed_loss(refiner, logits.float(), offsets, looks[1])
                losses = second + untrimmed_crop_loss(said.float(), boxes_norm, *how, settings.edges, seen, refiner.trimming)
        # Processes' gradients are averaged with equal weight, whether their shares of the step are equal or not.
        loss = losses.mean() * (len(images) * world / batches.rows_of(step))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # clipping must see the true gradients
        norm = float(torch.nn.utils.clip_grad_norm_(learner.core.parameters(), settings.clip_norm))
        finite = norm < float("inf")  # False for NaN too; the same on every process, since gradients are averaged
        if not finite:
            # Gradients too large for fp16 cost a step and a smaller scale; a loss that is no number would stay so.
            wrong = _names_over_processes(batches.names(rows[(~torch.isfinite(losses)).cpu()]))
            if wrong or not scaler.is_enabled():
                # BatchNorm spreads one bad picture over the step; then that one is named alone.
                bad = ~(torch.isfinite(images).flatten(1).all(1) & torch.isfinite(boxes_norm).all(1))
                named = _names_over_processes(batches.names(rows[bad.cpu()])) or wrong or _names_over_processes(batches.names(rows))
                rest = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
                what = f"loss {losses.mean().item()}, gradient norm {norm}, pairs {', '.join(named[:_MOST_NAMED])}{rest}"
                raise _diverged(epoch, f"step {step + 1}: {what}", ", or without the pairs that are named")
        scaler.step(optimizer)  # with fp16 leaves out a step whose gradients overflowed
        scaler.update()
        skipped += not finite
        if finite:
            norms.append(norm)
            learner.average()
        loss_sum += losses.detach().double().sum()
        images_here += len(images)
        on_step(epoch, step + 1, steps)
    sums = torch.stack([loss_sum, loss_sum.new_tensor(images_here)])
    _sum_over_processes(sums)
    mean_norm = sum(norms) / len(norms) if norms else float("nan")
    return _Trained(float(sums[0] / sums[1]), mean_norm, skipped, int(sums[1]), time.monotonic() - began_s)


def _diverged(epoch: int, what: str, otherwise: str = "") -> ModelError:
    """What a run that must end says, and what to do, or ``otherwise``; ``epoch`` from 0, told as the lines of finished epochs count."""
    cure = f"Train again with a lower --learning-rate{otherwise}"
    if epoch == 0:
        return ModelError(f"training diverged in epoch 1, {what}. {cure}.")
    return ModelError(
        f"training diverged in epoch {epoch + 1}, {what}. The best epoch before it is kept: --resume --max-epochs {epoch} finishes with it "
        f"(--resume alone comes to the same end). {cure}: --overwrite, or another --out."
    )


def _mixed(*numbers: int) -> int:
    """One seed of several numbers; none near another's, as sums would be."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def validate(model: CropRegressor, batches: Batches, settings: TrainSettings) -> Validation:
    """Judges a model on every validation row once, summed over all processes; with a refiner, what its second look says.

    The loss is that of the answer, whatever an edge is trained with: smooth L1 of its margin.  Where it is not sure whether a crop lies or
    stands, as of a square, it is that of both answers by how likely they are: one toss of a coin would outweigh all that an epoch learns.

    The model is used unwrapped: a process without rows would leave the others waiting in the wrapper's exchange of buffers.
    """
    device = next(model.parameters()).device
    if dist.is_initialized():
        for buffer in model.buffers():  # BatchNorm's running figures differ a little between processes; the first one's are saved
            dist.broadcast(buffer, 0)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, IoU, BDE, rows
    model.eval()
    refiner = getattr(model, "refiner", None)
    for images, boxes_norm, rows in batches.val():
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        boxes_norm = boxes_norm.to(device, non_blocking=True)
        margins, _ = read(model(images).float())
        boxes = to_boxes(margins.clamp(0, 1))
        loss = crop_loss(margins, boxes_norm, settings.overlap, settings.iou_weight, settings.margin_weight)
        if refiner is not None:
            strips, extents = batches.val_strips(rows, boxes)
            inward, _ = refiner.read(refiner(strips.to(device), extents.to(device)).float())
            margins = torch.cat([boxes[:, :2], 1 - boxes[:, 2:]], dim=1) + REACH * inward
            boxes = to_boxes(margins.clamp(0, 1))
            # Of the answer: the first look is a means.
            how = settings.overlap, settings.iou_weight, settings.margin_weight
            if refiner.trimming is None:
                loss = crop_loss(margins, boxes_norm, *how)
            else:
                boxes, other, share = refiner.trimming.answers(boxes, extents, model.architecture.trims_to)
                losses = [crop_loss(torch.cat([b[:, :2], 1 - b[:, 2:]], dim=1), boxes_norm, *how) for b in (boxes, other)]
                loss = share * losses[0] + (1 - share) * losses[1]
        iou = box_iou(boxes, boxes_norm).diagonal()
        bde = (boxes - boxes_norm).abs().mean(dim=1)
        sums += torch.stack([loss.double().sum(), iou.double().sum(), bde.double().sum(), torch.ones_like(loss).double().sum()])
    _sum_over_processes(sums)
    loss_sum, iou_sum, bde_sum, rows = sums.tolist()
    return Validation(loss_sum / rows, iou_sum / rows, bde_sum / rows, int(rows))


def _sum_over_processes(sums: torch.Tensor) -> None:
    """Adds up what processes have counted; to the last bit the same in each, since they decide by it, each for itself."""
    if dist.is_initialized():
        dist.all_reduce(sums)
        dist.broadcast(sums, 0)


def _names_over_processes(names: list[str]) -> list[str]:
    """The names that all processes together have; called by all at once."""
    if not dist.is_initialized():
        return names
    gathered: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return [name for part in gathered for name in part]
