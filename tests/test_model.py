"""The regressor: what it is before training, what its losses are, and which weights it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
import torch

from cropreg import model as model_module
from cropreg.edges import PLACES, edge_loss, read
from cropreg.errors import InputError, ModelError
from cropreg.losses import crop_loss, to_boxes
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.settings import Overlap

pytestmark = pytest.mark.long  # each test opens whole EfficientNets or draws pictures

PRIOR = (0.1, 0.2, 0.3, 0.15)


HEADS = get_args(Architecture.model_fields["head"].annotation)
SAID: list[tuple[dict[str, Any], str]] = [
    ({}, "smooth-l1"),
    ({"scales": True}, "laplace"),
    ({"head": "distribution"}, "smooth-l1"),
    ({"head": "distribution"}, "dfl"),
]


@pytest.mark.parametrize("prior", [PRIOR, (0.0, 0.5, 0.45, 0.001)])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_untrained_regressor_is_the_median_box(head: str, scales: bool, prior: tuple[float, float, float, float]) -> None:
    for side in (64, 100):
        regressor = CropRegressor(Architecture(head=head, scales=scales, image_side=side), prior).eval()  # type: ignore[arg-type]
        margins, unsure, _ = regressor.look(torch.rand(2, 3, side, side))
        assert torch.allclose(margins, torch.tensor([prior, prior]), atol=1e-4)
        assert unsure.shape == (2, 4) and bool((unsure > 0).all()) == (regressor.architecture.numbers > 1)


@pytest.mark.parametrize(("architecture", "kind"), SAID)
def test_what_is_said_of_edges_can_be_learned_and_is_surest_of_what_it_knows(architecture: dict[str, Any], kind: str) -> None:
    """Two pictures that always come with the same box, and two whose boxes vary: the mean of all is right, and the doubt is of those."""
    built = CropRegressor(Architecture(image_side=64, **architecture), PRIOR)
    said = built(torch.zeros(2, 3, 64, 64)).detach()[:1].repeat(2, *[1] * (2 if built.architecture.numbers > 1 else 1))
    said.requires_grad_()
    optimizer, rng = torch.optim.Adam([said], lr=0.05), torch.Generator().manual_seed(0)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        off = torch.stack([torch.zeros(4), 0.1 * torch.rand(4, generator=rng) - 0.05])
        loss = edge_loss(said, torch.tensor([[0.05, 0.2, 0.3, 0.45]]) + off, kind).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    margins, unsure = read(said)
    assert (margins - torch.tensor([0.05, 0.2, 0.3, 0.45])).abs().max() < 0.02
    if kind in ("laplace", "dfl"):
        assert (unsure[0] < 0.7 * unsure[1]).all(), unsure
        assert ((unsure[1] > 0.015) & (unsure[1] < 0.07)).all(), unsure


def test_distribution_is_pulled_towards_both_places_next_to_an_edge() -> None:
    said = torch.zeros(1, 4, PLACES, requires_grad=True)
    edge_loss(said, torch.tensor([[0.0, 0.25, 0.6, 1.0]]), "dfl").sum().backward()
    assert said.grad is not None
    for edge, (share, pulled) in enumerate(zip((0.0, 0.25, 0.6, 1.0), (-said.grad[0]).tolist(), strict=True)):
        low = min(int(share * (PLACES - 1)), PLACES - 2)
        near = pulled[low] * (low + 1 - share * (PLACES - 1)) + pulled[low + 1] * (share * (PLACES - 1) - low)
        assert near > 0, edge
    with torch.no_grad():
        exact = torch.full((1, 4, PLACES), -30.0)
        exact[..., 12:14] = 0.0
        halfway, wrong = (edge_loss(exact, torch.full((1, 4), at / (PLACES - 1)), "dfl") for at in (12.5, 20.0))
    assert (halfway < 0.05).all() and (wrong > 1).all()


def test_head_knows_as_much_of_where_things_are_as_it_keeps() -> None:
    torch.manual_seed(0)
    fine, coarse = torch.rand(2, 112, 4, 4), torch.rand(2, 1280, 2, 2)
    moved = coarse.flip(3)
    for head, differs in (("spatial", True), ("marginal", True), ("distribution", True), ("pooled", False)):
        built = CropRegressor(Architecture(head=head, image_side=64), PRIOR).head.eval()  # type: ignore[arg-type]
        torch.nn.init.normal_(built.last.weight)
        with torch.no_grad():
            change = float((built(fine, coarse) - built(fine, moved)).abs().max())
        assert (change > 1e-4) == differs


def test_marginal_head_keeps_rows_and_columns_but_not_which_of_them_meet() -> None:
    """Two spots on one diagonal have the marginals of two on the other; reducing is switched to one channel's plain mean."""
    head = CropRegressor(Architecture(head="marginal", image_side=64), PRIOR).head.eval()
    torch.nn.init.normal_(head.last.weight)
    fine, coarse = torch.zeros(2, 112, 4, 4), torch.zeros(2, 1280, 2, 2)
    coarse[0, :, [0, 1], [0, 1]] = 1.0
    coarse[1, :, [0, 1], [1, 0]] = 1.0
    beside = coarse.clone()
    beside[1, :, 0] = 0.0
    with torch.no_grad():
        same, other = head(fine, coarse), head(fine, beside)
    assert torch.allclose(same[0], same[1], atol=1e-6) and not torch.allclose(other[0], other[1], atol=1e-3)


OVERLAPS = get_args(Overlap)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_loss_is_nought_at_the_truth_and_grows_away_from_it(overlap: Overlap) -> None:
    truth = torch.tensor([[0.2, 0.2, 0.8, 0.9]])
    exact = torch.tensor([[0.2, 0.2, 0.2, 0.1]])
    values = [float(crop_loss(exact + d, truth, overlap, 1.0, 5.0)) for d in (0.0, 0.01, 0.05, 0.2)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values == sorted(values)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_loss_of_margins_that_cross_is_finite_and_pulls_them_apart(overlap: Overlap) -> None:
    margins = torch.tensor([[0.9, 0.9, 0.9, 0.9]], requires_grad=True)
    loss = crop_loss(margins, torch.tensor([[0.2, 0.2, 0.8, 0.8]]), overlap, 1.0, 5.0).sum()
    loss.backward()
    assert torch.isfinite(loss) and margins.grad is not None and bool((margins.grad > 0).all())
    assert (to_boxes(margins)[:, 2:] > to_boxes(margins)[:, :2]).all()


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_loss_and_its_slope_are_numbers_for_a_true_box_without_area(overlap: Overlap) -> None:
    margins = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    loss = crop_loss(margins, torch.tensor([[0.5, 0.5, 0.5, 0.5]]), overlap, 1.0, 5.0).sum()
    loss.backward()
    assert torch.isfinite(loss) and margins.grad is not None and bool(torch.isfinite(margins.grad).all())


def test_iou_loss_is_one_minus_the_shared_area() -> None:
    margins = torch.tensor([[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.75, 0.0]])
    truth = torch.tensor([[0.25, 0.0, 0.75, 1.0], [0.5, 0.0, 1.0, 1.0]])  # half of each shared; apart
    assert crop_loss(margins, truth, "iou", 1.0, 0.0).tolist() == pytest.approx([1 - 1 / 3, 1.0])


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_backbone_takes_weights_from_safetensors_and_state_dicts(tmp_path: Path, prefix: str) -> None:
    source, target = (CropRegressor(Architecture(image_side=64), PRIOR) for _ in range(2))
    state = {f"{prefix}features.{name}": value.clone() for name, value in source.features.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        target = CropRegressor(Architecture(image_side=64), PRIOR)
        load_backbone(target, str(tmp_path / name))
        assert all(
            torch.equal(a, b)
            for a, b in zip(source.features.state_dict().values(), target.features.state_dict().values(), strict=True)
        )


def test_backbone_refuses_other_weights_and_says_why(tmp_path: Path) -> None:
    regressor = CropRegressor(Architecture(image_side=64), PRIOR)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ModelError, match=r"no EfficientNet-B0 here.*conv1\.weight"):
        load_backbone(regressor, str(tmp_path / "resnet.safetensors"))
    half = {f"features.{name}": value for name, value in list(regressor.features.state_dict().items())[:50]}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match="tensors are missing"):
        load_backbone(regressor, str(tmp_path / "half.safetensors"))
    (tmp_path / "note.pth").write_text("no weights")
    with pytest.raises(ModelError, match="neither safetensors nor a state dict"):
        load_backbone(regressor, str(tmp_path / "note.pth"))
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(regressor, str(tmp_path / "absent.pth"))


def test_backbone_never_runs_code_from_a_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"features.0.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError):
        load_backbone(CropRegressor(Architecture(image_side=64), PRIOR), str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_impossible_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(model_module.EfficientNet_B0_Weights, "get_state_dict", refuse)
    with pytest.raises(InputError, match=r"download .* failed \(no route to host\).*--weights PATH.*--weights none"):
        load_backbone(CropRegressor(Architecture(image_side=64), PRIOR), "imagenet")
