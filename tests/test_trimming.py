"""Untrimmed boxes: what trimming to an aspect leaves of them, and what labels say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cropreg import checkpoint, proportions, storage
from cropreg.boxes import denormalise
from cropreg.checkpoint import Proportion
from cropreg.dataset import CropDataset, around
from cropreg.losses import crop_loss, untrimmed_crop_loss
from cropreg.pipelines import train
from cropreg.proportions import as_trained, trimmed_to
from cropreg.refiner import EdgeRefiner, untrimmed_loss
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings
from cropreg.strips import OUTWARD, REACH, extents_of, jittered, widened
from cropreg.trimming import Trimming, lying_share, trimmed

ASPECTS = [1.0, 4 / 3, 16 / 9]
FOUR_TO_THREE = Proportion(aspect=4 / 3, deviation=0.01, rows=100)


def seen_boxes(rows: int = 100, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Boxes (N, 4) of all aspects, in shares, and the sizes of their pictures."""
    rng = np.random.default_rng(seed)
    sizes_wh = rng.integers(300, 700, (rows, 2))
    corner, sides = rng.uniform(0.05, 0.2, (rows, 2)), rng.uniform(0.3, 0.7, (rows, 2))
    return np.concatenate([corner, corner + sides], axis=1), sizes_wh


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_what_trimming_leaves_is_the_largest_box_of_the_aspect(aspect: float, shares: tuple[float, float]) -> None:
    boxes, sizes_wh = seen_boxes()
    lying = lying_share(boxes, sizes_wh, 0.0) > 0.5
    found = trimmed(boxes, sizes_wh, aspect, lying, shares)
    edges = denormalise(found, sizes_wh)
    sides = edges[:, 2:] - edges[:, :2]
    assert np.allclose(sides[:, 0] / sides[:, 1], np.where(lying, aspect, 1 / aspect))
    inward = (found - boxes) * [1, 1, -1, -1]
    assert inward.min() > -1e-12, "nothing is added"
    assert np.allclose(inward.reshape(-1, 2, 2).max(axis=1).min(axis=1), 0), "one axis stays whole"
    off = inward[:, :2] + inward[:, 2:]
    assert np.allclose(inward[:, :2], off * shares), "at the left and at the top goes the share that is asked for"
    assert np.allclose(trimmed(found, sizes_wh, aspect, lying, shares), found), "and once it has the aspect nothing more"


def test_trimming_knows_no_direction() -> None:
    boxes, sizes_wh = seen_boxes()
    lying = lying_share(boxes, sizes_wh, 0.0) > 0.5
    found = trimmed(boxes, sizes_wh, 1.5, lying)
    mirrored = 1 - boxes[:, [2, 3, 0, 1]]
    assert np.allclose(trimmed(mirrored, sizes_wh, 1.5, lying), 1 - found[:, [2, 3, 0, 1]])
    turned = trimmed(boxes[:, [1, 0, 3, 2]], sizes_wh[:, ::-1], 1.5, ~lying)
    assert np.allclose(turned, found[:, [1, 0, 3, 2]])


def test_crops_lie_where_the_untrimmed_box_is_wider_than_the_turn() -> None:
    boxes, sizes_wh = np.array([[0.1, 0.1, 0.5, 0.5]]), np.array([[1000, 1000]])
    shares = [float(lying_share(boxes, sizes_wh, turn)[0]) for turn in (-0.1, 0.0, 0.1)]
    assert shares[0] > 0.9 and shares[1] == 0.5 and shares[2] < 0.1
    assert 0.5 < lying_share(boxes, sizes_wh, -0.1, 0.3)[0] < 0.7, "who is unsure of the box is unsure of this"


def test_turn_is_learned_between_what_lies_and_what_stands() -> None:
    """Squares, which this hand cuts lying two times of three, and others."""
    trimming = Trimming()
    wide = torch.cat([0.01 * torch.randn(300, generator=torch.Generator().manual_seed(0)), torch.tensor([-0.3, 0.3]).repeat(50)])
    lying = torch.where(wide.abs() > 0.1, wide > 0, torch.arange(len(wide)) % 3 > 0)
    optimizer = torch.optim.Adam([trimming.turn], 0.005)
    for _ in range(100):
        optimizer.zero_grad()
        trimming.turn_loss(wide, lying).mean().backward()
        optimizer.step()
    assert -0.05 < trimming.turn.item() < -0.01


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_shares_are_learned_from_where_crops_lie(share: float) -> None:
    boxes, sizes_wh = seen_boxes()
    labels = trimmed(boxes, sizes_wh, 4 / 3, lying_share(boxes, sizes_wh, 0.0) > 0.5, (share, 1 - share))
    inside = torch.from_numpy((boxes - labels) * [1, 1, -1, -1]).float()
    trimming = Trimming()
    optimizer = torch.optim.Adam([trimming.shares], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        trimming.slip(inside).abs().mean().backward()
        optimizer.step()
    assert trimming.shares.tolist() == pytest.approx([share, 1 - share], abs=0.03)


def places(inside: list[float]) -> torch.Tensor:
    """Logits (1, 4, bins) of a refiner that is sure of these offsets."""
    return (-(((torch.tensor([inside])[..., None] - EdgeRefiner().positions) / 0.05) ** 2) / 2).requires_grad_()


def loss_of(said: list[float], label: list[float]) -> tuple[float, list[bool], torch.Tensor]:
    """Of one picture: the loss, the axis that is taken to be seen, and the gradient of each edge's place."""
    refiner, logits = EdgeRefiner(untrimmed=True), places(said)
    extents = torch.from_numpy(extents_of(np.array([0.2, 0.2, 0.8, 0.65]), (600, 600)))[None]
    loss, seen = untrimmed_loss(refiner, logits, torch.tensor([label]), extents)
    loss.sum().backward()
    assert logits.grad is not None
    return loss.item(), seen[0].tolist(), (logits.grad[0] * refiner.positions).sum(dim=1)


def test_axis_that_was_trimmed_says_only_where_the_crop_lies() -> None:
    label = [0.4, 0.0, 0.4, 0.0]
    narrow, seen, gradient = loss_of([0.2, 0.0, 0.2, 0.0], label)
    wide, _, _ = loss_of([-0.2, 0.0, -0.2, 0.0], label)
    assert seen == [False, True] and narrow == pytest.approx(wide, abs=1e-3), "how much was trimmed is for the picture to say"
    assert gradient[::2].abs().max() < 1e-3
    aside, seen, gradient = loss_of([-0.4, 0.0, 0.0, 0.0], label)
    assert seen == [False, True] and aside > wide + 0.2
    assert gradient[0] < 0 < gradient[2], "both edges are to go to the right"
    inner, _, gradient = loss_of([0.6, 0.0, 0.6, 0.0], label)
    assert inner > wide + 0.05 and (gradient[::2] > 0).all(), "but a crop lies within what was seen"


def test_axis_that_was_trimmed_is_the_one_that_is_seen_otherwise() -> None:
    label = [0.0, 0.0, 0.0, 0.0]
    assert loss_of([-0.3, 0.0, -0.3, 0.0], label)[1] == [False, True]
    assert loss_of([0.0, -0.3, 0.0, -0.3], label)[1] == [True, False]


def test_first_look_is_judged_like_the_second() -> None:
    label, trimming = torch.tensor([[0.2, 0.2, 0.8, 0.65]]), Trimming()
    how = "giou", 1.0, 5.0

    def loss(margins: list[float]) -> float:
        said = torch.tensor([margins])
        return untrimmed_crop_loss(said, label, *how, "smooth-l1", torch.tensor([[False, True]]), trimming).item()

    assert loss([0.2, 0.2, 0.2, 0.35]) == pytest.approx(0, abs=1e-6) == loss([0.1, 0.2, 0.1, 0.35])
    assert loss([0.1, 0.2, 0.2, 0.35]) > 0.1 and loss([0.25, 0.2, 0.25, 0.35]) > 0.05
    seen = torch.tensor([[0.1, 0.25, 0.1, 0.3]])
    plain = crop_loss(torch.tensor([[0.2, 0.25, 0.2, 0.3]]), label, *how)
    assert loss(seen[0].tolist()) == pytest.approx(plain.item()), "edges that are seen as ever"


def test_spread_of_a_trimmed_box_is_that_of_its_errors() -> None:
    """A law, not a case: errors as large as they are said to be."""
    rng = np.random.default_rng(3)
    boxes, sizes_wh = seen_boxes(2000)
    wide = np.abs(np.log((boxes[:, 2] - boxes[:, 0]) * sizes_wh[:, 0] / ((boxes[:, 3] - boxes[:, 1]) * sizes_wh[:, 1])))
    clear = wide > 0.4  # near a square, or where next to nothing is trimmed, errors are not normal
    boxes, sizes_wh = boxes[clear], sizes_wh[clear]
    exact = Proportion(aspect=4 / 3, deviation=1e-9, rows=100)
    spread = rng.choice([0.002, 0.008], boxes.shape)
    true, _ = trimmed_to(boxes, spread, sizes_wh, exact)
    found, said = trimmed_to(boxes + spread * rng.normal(size=boxes.shape), spread, sizes_wh, exact)
    assert 0.85 < np.sqrt((((found - true) / said) ** 2).mean()) < 1.15
    _, more = trimmed_to(boxes, spread, sizes_wh, FOUR_TO_THREE)
    off = np.abs(true - boxes) > 0.01
    assert (more[off] > said[off] - 1e-3).all() and (more - said)[off].mean() > 0, "the hand's tremor adds to what no border holds"


def test_box_between_lying_and_standing_is_doubtful() -> None:
    sizes_wh = np.array([[1000, 1000], [1000, 1000]])
    box = np.array([[0.2, 0.2, 0.601, 0.6], [0.2, 0.2, 0.6, 0.49]])
    _, spread = trimmed_to(box, np.full_like(box, 0.005), sizes_wh, FOUR_TO_THREE)
    assert (spread[0] > 2 * spread[1]).all()


def test_strips_for_untrimmed_boxes_show_the_labels_edges() -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.3, 0.3, 0.7, 0.7])
    plain = [jittered(true, rng) for _ in range(400)]
    wide = np.array([widened(box, true, rng) for box in plain])
    out = (np.array(plain) - wide) * [1, 1, -1, -1]
    assert np.abs(wide - true).max() < REACH and out.min() > -1e-9
    assert ((out > 1e-3).any(axis=1)).mean() == pytest.approx(2 / 3, abs=0.1), "a third is left as it was"
    assert not ((out > 1e-3)[:, :2] & (out > 1e-3)[:, 1::-1]).any(), "one axis at most goes out"


def test_frames_for_untrimmed_boxes_hold_what_may_have_been_trimmed(made_boxes: Path) -> None:
    data = CropDataset(BoxDataset.open(str(made_boxes)), "all", 64, augment=True, reframe=1.0, color=0.0)
    before = [data[i][1] for i in range(len(data))]
    data.untrimmed = True
    for i, narrow in enumerate(before):
        label, shown = data.labels.boxes_norm[i], data[i][1].double().numpy()
        whole, origin = np.tile((label[2:] - label[:2]) / (shown[2:] - shown[:2]), 2), np.tile(label[:2], 2)
        frame = origin + (np.array([0, 0, 1, 1]) - np.tile(shown[:2], 2)) * whole
        outward = (frame - around(label)) * OUTWARD
        assert outward.min() > -0.02, "but for whole pixels"
        assert (shown[2:] - shown[:2] <= (narrow[2:] - narrow[:2]).numpy() + 0.02).all(), "frames are wider than they were"


def test_aspect_without_a_trimming_is_kept_as_it_was_learned() -> None:
    class Model:
        refiner = EdgeRefiner()

    model: object = Model()
    assert as_trained(FOUR_TO_THREE, model) is FOUR_TO_THREE  # type: ignore[arg-type]
    Model.refiner = EdgeRefiner(untrimmed=True)
    assert as_trained(None, model) is None  # type: ignore[arg-type]
    with torch.no_grad():
        Model.refiner.trimming.turn.fill_(-0.25)  # type: ignore[union-attr]
    found = as_trained(FOUR_TO_THREE, model)  # type: ignore[arg-type]
    assert found is not None and found.turn == -0.25 and found.shares == (0.5, 0.5)


@pytest.mark.long
def test_training_to_one_aspect_keeps_how_it_trims_and_resumes(
    tmp_path: Path, made_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proportions, "learn", lambda boxes_norm, sizes_wh: FOUR_TO_THREE)
    settings = TrainSettings(weights="none", image_side=64, max_epochs=2, batch_size=32, num_workers=0)
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    train.run(str(made_boxes), out=whole, settings=settings)
    model, info = checkpoint.load(checkpoint.best_of(whole))
    assert info.architecture.trims_to == 4 / 3 and info.proportion is not None and info.calibration is not None
    assert info.proportion == as_trained(FOUR_TO_THREE, model) != FOUR_TO_THREE, "it has learned something of trimming"
    train.run(str(made_boxes), out=cut, settings=settings.model_copy(update={"max_epochs": 1}))
    train.run(str(made_boxes), out=cut, settings=settings.model_copy(update={"resume": True}))
    resumed, _ = checkpoint.load(checkpoint.best_of(cut))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.long
def test_run_that_was_begun_without_trimming_goes_on_without(
    tmp_path: Path, made_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(weights="none", image_side=64, max_epochs=1, batch_size=32, num_workers=0, resume=True)
    run = str(tmp_path / "run")
    train.run(str(made_boxes), out=run, settings=settings)
    monkeypatch.setattr(proportions, "learn", lambda boxes_norm, sizes_wh: FOUR_TO_THREE)
    train.run(str(made_boxes), out=run, settings=settings.model_copy(update={"max_epochs": 2}))
    _, info = checkpoint.load(storage.join(run, "checkpoints/last"))
    assert info.epoch == 1 and info.proportion == FOUR_TO_THREE and info.architecture.trims_to is None


def test_validation_knows_both_answers_to_a_square_and_how_likely_they_are() -> None:
    extents = torch.from_numpy(extents_of(np.array([0.2, 0.2, 0.8, 0.8]), (600, 600)))[None]
    answers = [Trimming().answers(torch.tensor([[0.2, 0.2, 0.8, 0.8 + more]]), extents, 4 / 3) for more in (-1e-3, 1e-3, -0.2)]
    (lying, other, share), (standing, instead, again), (_, _, sure) = answers
    assert torch.allclose(lying, instead, atol=2e-3) and torch.allclose(other, standing, atol=2e-3), "a toss of a coin"
    assert (lying[0, 2:] - lying[0, :2]).tolist() == pytest.approx([0.6, 0.45], abs=2e-3)
    assert share.item() == pytest.approx(again.item(), abs=1e-3) and 0.5 < share.item() < 0.53 < 0.99 < sure.item()
