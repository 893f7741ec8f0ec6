"""The training loop on a small stand-in for the regressor: decisions, faults, resuming."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from cropreg import training
from cropreg.errors import ModelError, UsageError
from cropreg.pipelines.train import check_edges
from cropreg.settings import TrainSettings
from cropreg.training import Batch, EpochResult, Learner, Progression, fit, validate


class Tiny(nn.Module):
    """Four margins from the mean colour of four bands, with BatchNorm and dropout as in the real head."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.last = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bands = images.reshape(len(images), 3, 4, -1).mean(dim=3).flatten(1)
        margins: torch.Tensor = self.last(self.hidden(bands))
        return margins


class Made:
    """Batches of made-up pictures whose bands' colours are their margins."""

    def __init__(self, rows: int = 24, size: int = 8, size_val: int = 7) -> None:
        generator = torch.Generator().manual_seed(1)
        self.margins = torch.rand(rows, 4, generator=generator) * 0.4
        self.images = self.margins.repeat_interleave(4, dim=1).reshape(rows, 1, 4, 4).expand(-1, 3, -1, -1) - 0.2
        self.boxes = torch.cat([self.margins[:, :2], 1 - self.margins[:, 2:]], dim=1)
        self.size, self.size_val = size, size_val

    def train(self, epoch: int) -> Iterable[Batch]:
        order = torch.randperm(len(self.boxes), generator=torch.Generator().manual_seed(epoch))
        return [(self.images[rows], self.boxes[rows], rows) for rows in order.split(self.size)]

    def rows_of(self, step: int) -> int:
        return min(self.size, len(self.boxes) - step * self.size)

    def val(self) -> Iterable[Batch]:
        rows = torch.arange(len(self.boxes))
        return [(self.images[part], self.boxes[part], part) for part in rows.split(self.size_val)]

    def val_strips(self, rows: torch.Tensor, boxes_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("a model without a refiner has no use for strips")

    def names(self, rows: torch.Tensor) -> list[str]:
        return [f"pair-{int(row)}" for row in rows]


with_numbers = partial(TrainSettings, head="spatial")  # the models here say one number of an edge


def learner(settings: TrainSettings, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model: Any = Tiny()
    return Learner(model, model, settings, None)


def run(settings: TrainSettings, learning: Learner | None = None, batches: Made | None = None) -> list[EpochResult]:
    results: list[EpochResult] = []
    fit(learning or learner(settings), batches or Made(), settings, results.append)
    return results


def test_loop_learns() -> None:
    results = run(with_numbers(max_epochs=40, learning_rate=0.02, averaging=0.5))
    assert results[-1].val_loss < 0.5 * results[0].val_loss
    assert [r.epoch for r in results] == list(range(len(results)))
    assert min(r.val_loss for r in results) == next(r.val_loss for r in reversed(results) if r.is_best)


def test_loop_stops_when_the_validation_loss_no_longer_falls() -> None:
    settings = with_numbers(max_epochs=50, patience=3, learning_rate=1e-12, averaging=0.0)
    results = run(settings)
    best = max(r.epoch for r in results if r.is_best)
    assert len(results) == best + 1 + 3 < 50


def test_learning_rate_warms_up_and_falls_on_a_plateau() -> None:
    settings = with_numbers(max_epochs=8, patience=20, lr_patience=1, lr_factor=0.5, learning_rate=1e-7, averaging=0.0)
    rates = [r.learning_rate for r in run(settings)]  # so low a rate that the loss stands still
    assert rates[0] == pytest.approx(1e-7), "the last step of the first epoch has the whole rate"
    assert rates[-1] < rates[0] and all(a >= b for a, b in pairwise(rates))


@pytest.mark.parametrize("warmup", [0.1, 0.5, 1.5])
def test_learning_rate_never_grows_past_the_one_that_was_asked_for(warmup: float) -> None:
    settings = with_numbers(max_epochs=3, warmup_epochs=warmup, learning_rate=1e-3, lr_patience=9)
    assert run(settings)[-1].learning_rate == pytest.approx(1e-3)


def test_the_second_look_takes_larger_steps_and_only_weights_decay() -> None:
    settings = with_numbers(warmup_epochs=0, averaging=0.0)
    torch.manual_seed(0)
    model: Any = Tiny()
    model.refiner = nn.Linear(2, 2)
    learning = Learner(model, model, settings, None)
    by_id = {id(p): group for group in learning.optimizer.param_groups for p in group["params"]}
    assert len(by_id) == len(list(model.parameters())), "every parameter is stepped, and once"
    assert by_id[id(model.refiner.weight)]["lr"] == 2.5 * by_id[id(model.last.weight)]["lr"] == 2.5 * settings.learning_rate
    for parameter in model.parameters():
        assert (by_id[id(parameter)]["weight_decay"] > 0) == (parameter.ndim > 1)


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one() -> None:
    settings = with_numbers(max_epochs=6, learning_rate=0.01, lr_patience=0)
    whole = learner(settings)
    expected = run(settings, whole)
    first = learner(settings)
    run(settings.model_copy(update={"max_epochs": 3}), first)
    kept = first.state()
    second = learner(settings, seed=99)
    second.restore(kept)
    results = run(settings, second)
    assert [r.val_loss for r in results] == [r.val_loss for r in expected[3:]]
    for name, value in whole.judged.state_dict().items():
        assert torch.equal(value, second.judged.state_dict()[name]), name


def test_loop_does_nothing_when_it_had_already_stopped() -> None:
    settings = with_numbers(max_epochs=9, patience=2)
    done = learner(settings)
    done.progression = Progression(epoch=5, best_loss=0.1, best_epoch=2, stale=2)
    assert run(settings, done) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_epoch_step_and_pairs_and_spoils_no_weight(bad: float) -> None:
    batches = Made()
    batches.images = batches.images.clone()
    batches.images[5] = bad
    settings = with_numbers(max_epochs=2)
    learning = learner(settings)
    with pytest.raises(ModelError, match=r"diverged in epoch 1, step \d+: .*pairs pair-5\. Train again .*named\.$"):  # of eight
        run(settings, learning, batches)
    assert all(torch.isfinite(p).all() for p in learning.core.parameters())


def test_divergence_says_how_to_finish_with_what_was_learned_before() -> None:
    settings, batches = with_numbers(max_epochs=4, averaging=0.0), Made()
    results: list[EpochResult] = []

    def on_epoch(result: EpochResult) -> None:
        results.append(result)
        if len(results) == 2:
            batches.images[:, 0] = math.nan

    batches.images = batches.images.clone()
    with pytest.raises(ModelError, match=r"epoch 3, step 1: .* pairs (pair-\d+(, | and )){8}") as caught:
        batches.size = 12
        fit(learner(settings), batches, settings, on_epoch)
    assert "and 4 more. " in str(caught.value) and "--resume --max-epochs 2 finishes with it" in str(caught.value)


def test_gradients_are_clipped_before_the_step() -> None:
    settings = with_numbers(max_epochs=1, clip_norm=1e-3, margin_weight=1e4)
    seen: list[float] = []
    learning = learner(settings)
    step = learning.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(float(torch.stack([p.grad.norm() for p in learning.core.parameters() if p.grad is not None]).norm()))
        return step(*args, **kwargs)

    learning.optimizer.step = watched  # type: ignore[method-assign]
    results = run(settings, learning)
    assert max(seen) <= 1e-3 * 1.001
    assert results[0].grad_norm > 1, "the norm that is told is that before clipping"


def test_validation_counts_every_row_once_whatever_the_batches() -> None:
    settings = with_numbers()
    model: Any = learner(settings).core
    whole = validate(model, Made(rows=23, size_val=23), settings)
    parts = validate(model, Made(rows=23, size_val=5), settings)
    assert whole.rows == parts.rows == 23
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.iou == pytest.approx(parts.iou, rel=1e-6)


def test_mixed_precision_on_the_cpu_learns_too() -> None:
    settings = with_numbers(max_epochs=5, learning_rate=0.02, averaging=0.0)
    torch.manual_seed(0)
    model: Any = Tiny()
    results = run(settings, Learner(model, model, settings, torch.bfloat16))
    assert results[-1].val_loss < results[0].val_loss


def test_validation_that_is_no_number_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "validate", lambda *_: training.Validation(math.nan, math.nan, math.nan, 24))
    with pytest.raises(ModelError, match="diverged in epoch 1, validation loss nan"):
        run(with_numbers(max_epochs=2))


def halved(settings: TrainSettings) -> Learner:
    """A learner in fp16 with a scaler, as on a GPU without bf16."""
    torch.manual_seed(0)
    model: Any = Tiny()
    return Learner(model, model, settings, torch.float16)


def test_gradients_too_large_for_fp16_cost_their_step_and_no_more() -> None:
    settings = with_numbers(max_epochs=8, learning_rate=0.02, averaging=0.0)
    learning = halved(settings)
    learning.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=10**6)
    results = run(settings, learning)
    assert results[0].skipped_steps == 3 and math.isnan(results[0].grad_norm), "no step of the first epoch had a gradient"
    assert results[-1].skipped_steps == 0 and results[-1].grad_norm > 0
    assert all(torch.isfinite(p).all() for p in learning.core.parameters())


def test_run_of_which_every_step_is_left_out_ends() -> None:
    class Endless(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, said: torch.Tensor) -> torch.Tensor:
            return said.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.nan

    settings = with_numbers(max_epochs=30, patience=30)
    learning = halved(settings)
    learning.model.register_forward_hook(lambda *args: Endless.apply(args[-1]))
    with pytest.raises(ModelError, match="every step was left out, since its gradients were no numbers"):
        run(settings, learning)


def test_run_begun_without_a_scaler_goes_on_with_one() -> None:
    settings = with_numbers(max_epochs=2)
    begun = learner(settings)
    run(settings, begun)
    other = halved(settings)
    other.restore(begun.state())
    assert other.progression == begun.progression and other.scaler.get_scale() > 1


def test_loss_that_is_no_number_ends_the_run_in_fp16_too() -> None:
    batches = Made()
    batches.images = batches.images.clone()
    batches.images[5] = math.nan
    with pytest.raises(ModelError, match=r"diverged in epoch 1, step \d+: loss nan, .*pair-"):
        run(with_numbers(max_epochs=2), halved(with_numbers()), batches)


def test_divergence_names_only_the_pairs_whose_loss_is_no_number() -> None:
    class Unmixed(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(12, 16), nn.ReLU())  # BatchNorm would spread it over the batch

    batches = Made()
    batches.images = batches.images.clone()
    batches.images[5] = math.nan
    model: Any = Unmixed()
    with pytest.raises(ModelError, match=r"pairs pair-5\. "):
        run(with_numbers(max_epochs=1), Learner(model, model, with_numbers(), None), batches)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"edges": "dfl", "head": "spatial"}, r"--head spatial gives none\. Add --head distribution"),
        ({"edges": "laplace"}, "Use --edges dfl, or --head spatial"),
        ({"edges": "laplace", "head": "spatial", "margin_weight": 0.0}, "does nothing with --margin-weight 0"),
    ],
)
def test_edge_losses_that_do_not_go_with_the_head_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_edges(TrainSettings(**given))


@pytest.mark.parametrize(("given", "loss"), [({}, "dfl"), ({"head": "pooled"}, "smooth-l1"), ({"margin_weight": 0}, "smooth-l1")])
def test_loss_of_an_edge_goes_with_the_head_where_nothing_is_said(given: dict[str, Any], loss: str) -> None:
    settings = TrainSettings(**given)
    check_edges(settings)
    assert settings.edges == loss and TrainSettings(**settings.model_dump()) == settings


@pytest.mark.parametrize("numbers", [2, 48])
def test_loop_learns_what_is_said_as_scales_and_as_places(numbers: int) -> None:
    class Says(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(16, 4 * numbers)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).unflatten(1, (4, numbers))

    settings = TrainSettings(max_epochs=40, learning_rate=0.02, averaging=0.5, edges="laplace" if numbers == 2 else "dfl")
    torch.manual_seed(0)
    model: Any = Says()
    results = run(settings, Learner(model, model, settings, None))
    assert min(r.val_loss for r in results) < 0.6 * results[0].val_loss


def test_the_average_follows_weights_and_figures_closely_at_first() -> None:
    core = Tiny()
    learner = Learner(core, core, TrainSettings(averaging=0.2), None)  # type: ignore[arg-type]
    watched = [core.last.weight, core.hidden[1].running_mean]
    kept = [learner.judged.last.weight, learner.judged.hidden[1].running_mean]  # type: ignore[attr-defined]
    expected = [torch.zeros(())] * 2
    for done, share in enumerate((1, 1 - 2 / 11, 0.8, 0.8)):
        with torch.no_grad():
            for tensor in watched:
                tensor += torch.randn_like(tensor)
            core.hidden[1].num_batches_tracked += 1
        learner.average()
        expected = [before + share * (now - before) for before, now in zip(expected, watched, strict=True)]
        for now, then in zip(kept, expected, strict=True):
            torch.testing.assert_close(now.detach(), then.detach(), msg=f"after {done + 1} steps")
    assert learner.judged.hidden[1].num_batches_tracked == 4  # type: ignore[attr-defined]


def test_no_average_where_none_is_asked_for() -> None:
    core = Tiny()
    learner = Learner(core, core, TrainSettings(averaging=0.0), None)  # type: ignore[arg-type]
    learner.average()
    assert learner.judged is core
