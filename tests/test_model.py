"""The regressor: what it is before training, what its losses are, and which weights it takes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch

from cropreg import model as model_module
from cropreg.errors import InputError, ModelError
from cropreg.losses import crop_loss, to_boxes
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.settings import Overlap

pytestmark = pytest.mark.long  # each test opens whole EfficientNets or draws pictures

PRIOR = (0.1, 0.2, 0.3, 0.15)


@pytest.mark.parametrize("head", ["spatial", "pooled"])
@pytest.mark.parametrize("side", [64, 100])
def test_untrained_regressor_is_the_median_box(head: str, side: int) -> None:
    regressor = CropRegressor(Architecture(head=head, image_side=side), PRIOR).eval()  # type: ignore[arg-type]
    margins = regressor(torch.rand(2, 3, side, side))
    assert torch.allclose(margins, torch.tensor([PRIOR, PRIOR]))


def test_spatial_head_knows_where_things_are_and_the_pooled_one_does_not() -> None:
    torch.manual_seed(0)
    fine, coarse = torch.rand(2, 112, 4, 4), torch.rand(2, 1280, 2, 2)
    moved = coarse.flip(3)
    for head, differs in (("spatial", True), ("pooled", False)):
        built = CropRegressor(Architecture(head=head, image_side=64), PRIOR).head.eval()  # type: ignore[arg-type]
        torch.nn.init.normal_(built.last.weight)
        with torch.no_grad():
            change = float((built(fine, coarse) - built(fine, moved)).abs().max())
        assert (change > 1e-4) == differs


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
